-- Write what derives from one job's events anew, if the job is still where it was when they were folded.
--
-- KEYS  1 heads (hash); others are prefix .. name
-- ARGV  1 prefix   2 job id   3 version and revision, "v r"   4 state or ""   5 since   6 number of fields n
--       then n * (field, value), then the positions that are still in Redis
-- RETURNS  {OK, 1 where something was different, else 0}   {MOVED}: fold again

local heads, prefix, id = KEYS[1], ARGV[1], ARGV[2]
local call = redis.call

local v, r, base = string.match(call('HGET', heads, 'job/' .. id) or '', '^(%d+) (%d+) %d+%-%d+ ?(%d*)$')
if not v or v .. ' ' .. r ~= ARGV[3] then return {'MOVED'} end
local n = tonumber(ARGV[6])
local first = 7 + 2 * n
if #ARGV - first + 1 ~= tonumber(v) - (tonumber(base) or 0) then return {'MOVED'} end

local changed = 0
local hash, index = prefix .. 'job:' .. id, prefix .. 'idx:' .. id
local fields, same = {}, true
for at = 7, 6 + 2 * n do fields[#fields + 1] = ARGV[at] end
local shown = call('HGETALL', hash)
local is, count = {}, 0
for at = 1, #shown, 2 do
  if shown[at + 1] ~= '' then is[shown[at]] = shown[at + 1]; count = count + 1 end
end
for at = 1, #fields, 2 do
  if is[fields[at]] ~= fields[at + 1] then same = false end
end
if not same or count ~= n then
  call('DEL', hash)
  call('HSET', hash, unpack(fields))
  changed = 1
end
if ARGV[4] ~= '' then
  local set = prefix .. 'by:state:' .. ARGV[4]
  changed = math.max(changed, call('ZADD', set, 'CH', ARGV[5], id), call('ZADD', prefix .. 'by:time', 'CH', ARGV[5], id))
end
local listed = call('LRANGE', index, 0, -1)
same = #listed == #ARGV - first + 1
for at = 1, #listed do same = same and listed[at] == ARGV[first + at - 1] end
if not same then
  call('DEL', index)
  for at = first, #ARGV, 1000 do call('RPUSH', index, unpack(ARGV, at, math.min(at + 999, #ARGV))) end
  changed = 1
end
return {'OK', changed}

-- Take history that is on disk out of Redis: the log up to a sequence, and the positions of jobs' events.
--
-- KEYS  1 log (stream)   2 heads (hash); others are prefix .. name
-- ARGV  1 prefix   2 first position to keep   3 last sequence to go   then (job id, last version to go) *
-- RETURNS  {OK, events taken}   {REBUILD, why}: what derives from the log does not match it, and nothing was done
-- Everything is checked first.

local log, heads, prefix = KEYS[1], KEYS[2], ARGV[1]
local call = redis.call

local function number(n) return string.format('%.0f', n) end

local seq = tonumber(call('HGET', heads, '@seq') or '')
if not seq then return {'REBUILD', 'heads missing'} end
-- Never to nothing: the end of the log is what appends are checked against.
if tonumber(ARGV[3]) >= seq then return {'REBUILD', 'the log ends before that'} end
local changes = {}
for at = 4, #ARGV, 2 do
  local id, upto = ARGV[at], tonumber(ARGV[at + 1])
  local name = 'job/' .. id
  local v, r, last, base = string.match(call('HGET', heads, name) or '', '^(%d+) (%d+) (%d+%-%d+) ?(%d*)$')
  if not v then return {'REBUILD', 'head of ' .. name .. ' unreadable'} end
  base = tonumber(base) or 0
  local index = prefix .. 'idx:' .. id
  if call('LLEN', index) ~= tonumber(v) - base or upto > tonumber(v) then
    return {'REBUILD', 'index of ' .. name .. ' differs'}
  end
  if upto > base then changes[#changes + 1] = {name, index, upto - base, v .. ' ' .. r .. ' ' .. last .. ' ' .. number(upto)} end
end
for _, change in ipairs(changes) do
  call('LTRIM', change[2], change[3], -1)
  call('HSET', heads, change[1], change[4])
end
return {'OK', call('XTRIM', log, 'MINID', '=', ARGV[2])}

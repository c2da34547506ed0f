-- The next step of whoever drains a lane, in one go with the lease that makes it the lane's owner.
--
-- KEYS  1 lane (hash)   2 outbox (list)   3 flying (set)   4 lanes (set)   5 open (sorted set of open work)
-- ARGV  1 prefix   2 lane's name   3 token   4 worker   5 lease in ms   6 most ids
--       7 GO | LEAVE (if nothing is left) | HAND (over, with a bell to come)   then ids whose send is through
-- RETURNS  {HELD}   {LEFT}   {HANDED, waiting}
--          {OK, waiting, number of flying, flying ..., then per id of the outbox: id, deadline or "", attempts, max, reply}
local prefix, lane, token, worker, how = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[7]
local lease, most = tonumber(ARGV[5]), tonumber(ARGV[6])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local is = redis.call('HMGET', KEYS[1], 'token', 'until')
local mine = is[1] == token
if is[1] and not mine and (tonumber(is[2]) or 0) > now then return {'HELD'} end
for i = 8, #ARGV do redis.call('SREM', KEYS[3], ARGV[i]) end
while true do -- what was closed meanwhile, at its deadline for instance, is not sent
  local first = redis.call('LINDEX', KEYS[2], 0)
  if not first or redis.call('ZSCORE', KEYS[5], 'aux_' .. first) then break end
  redis.call('LPOP', KEYS[2])
end
local waiting = redis.call('LLEN', KEYS[2])
if how == 'HAND' then
  redis.call('DEL', KEYS[1])
  if waiting > 0 then redis.call('HSET', KEYS[1], 'rung', string.format('%.0f', now)) end
  return {'HANDED', waiting}
end
local flying = {}
if not mine then flying = redis.call('SMEMBERS', KEYS[3]) end -- what an owner before us had begun
if how == 'LEAVE' and waiting == 0 and #flying == 0 then
  redis.call('DEL', KEYS[1])
  if redis.call('SCARD', KEYS[3]) == 0 then redis.call('SREM', KEYS[4], lane) end
  return {'LEFT'}
end
redis.call('HSET', KEYS[1], 'token', token, 'worker', worker, 'until', string.format('%.0f', now + lease))
redis.call('HDEL', KEYS[1], 'rung')
local answer = {'OK', waiting, #flying}
local ids = redis.call('LRANGE', KEYS[2], 0, most - 1)
local function tell(id)
  local work = redis.call('HMGET', prefix .. 'work:aux_' .. id, 'attempts', 'max', 'reply')
  answer[#answer + 1] = id
  answer[#answer + 1] = redis.call('ZSCORE', KEYS[5], 'aux_' .. id) or ''
  answer[#answer + 1] = work[1] or '0'
  answer[#answer + 1] = work[2] or '0'
  answer[#answer + 1] = work[3] or '0'
end
for _, id in ipairs(flying) do tell(id) end
for _, id in ipairs(ids) do tell(id) end
answer[#answer + 1] = string.format('%.0f', now)
return answer

-- Move references from a lane into its target's inbox: in one step, so that none is lost or doubled if the worker dies.
--
-- KEYS  1 outbox (list)   2 lease   3 mark: rung   4 the target's sign of life   5 its inbox (list)
--       6 RQ's queue, to see who else waits
-- ARGV  1 token of this drain   2 lease in ms   3 most to move   4 most that the inbox may hold
--       5 ms that an unread inbox is kept   6 GO | LEAVE (if nothing is left) | HAND (over, with a bell to come)
-- RETURNS  {HELD}   {LEFT}   {HANDED, left}   {STUCK}: the target is away or full   {OK, moved, left, others that wait}
local is = redis.call('GET', KEYS[2])
if is and is ~= ARGV[1] then return {'HELD'} end
redis.call('DEL', KEYS[3]) -- the bell was heard
local left = redis.call('LLEN', KEYS[1])
if left == 0 and ARGV[6] == 'LEAVE' then
  redis.call('DEL', KEYS[2])
  return {'LEFT'}
end
if ARGV[6] == 'HAND' then
  redis.call('DEL', KEYS[2])
  return {'HANDED', left}
end
local most = math.min(left, tonumber(ARGV[3]), tonumber(ARGV[4]) - redis.call('LLEN', KEYS[5]))
if left > 0 and (redis.call('EXISTS', KEYS[4]) == 0 or most <= 0) then
  redis.call('DEL', KEYS[2]) -- the sender looks after it, and rings again
  return {'STUCK'}
end
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
for _ = 1, most do redis.call('LMOVE', KEYS[1], KEYS[5], 'LEFT', 'RIGHT') end
if most > 0 then redis.call('PEXPIRE', KEYS[5], ARGV[5]) end
return {'OK', most, left - most, redis.call('LLEN', KEYS[6])}

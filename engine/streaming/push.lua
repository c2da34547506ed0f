-- Put references to objects at the end of a lane, and learn whether its bell has to be rung.
--
-- KEYS  1 outbox (list)   2 lease of whoever drains it   3 mark: it was rung a moment ago
-- ARGV  1 milliseconds that a lane is kept that nobody drains   2 milliseconds of the mark   then references
-- RETURNS 1: ring
for i = 3, #ARGV do redis.call('RPUSH', KEYS[1], ARGV[i]) end
if #ARGV > 2 then redis.call('PEXPIRE', KEYS[1], ARGV[1]) end
if redis.call('LLEN', KEYS[1]) == 0 then return 0 end
if redis.call('EXISTS', KEYS[2], KEYS[3]) > 0 then return 0 end
redis.call('SET', KEYS[3], '1', 'PX', ARGV[2])
return 1

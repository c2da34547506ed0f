-- Give answers to a producer, while its stream is open: later there is nobody to take them away.
--
-- KEYS  1 the transfer's objects (hash; its context lies in "open" for as long as it is)   2 answers (list)
-- ARGV  1 milliseconds that they are kept   then answers
if redis.call('HEXISTS', KEYS[1], 'open') == 0 then return 0 end
for i = 2, #ARGV do redis.call('RPUSH', KEYS[2], ARGV[i]) end
redis.call('PEXPIRE', KEYS[2], ARGV[1])
return 1

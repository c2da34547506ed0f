-- Put messages into a cell's inbox, each only if it can be taken.
--
-- KEYS  1 cells (hash of known addresses)   2 the target's sign of life   3 its inbox (stream)
-- ARGV  1 target   2 most that the inbox may hold   3 milliseconds that an unread inbox is kept   then message ids
-- RETURNS a word per id: OK, LOST (its payload is gone), FULL, DOWN (known, not there now), UNKNOWN (never seen)
local max, life = tonumber(ARGV[2]), tonumber(ARGV[3])
local answer = {}
local up = redis.call('EXISTS', KEYS[2]) == 1
local known = up or redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1
local held = redis.call('XLEN', KEYS[3])
for i = 4, #ARGV do
  local id = ARGV[i]
  if redis.call('EXISTS', 'ff:' .. id) == 0 then
    answer[#answer + 1] = 'LOST'  -- first: a fabric that was replaced has lost it, and has not met its receiver yet
  elseif not known then
    answer[#answer + 1] = 'UNKNOWN'
  elseif not up then
    answer[#answer + 1] = 'DOWN'
  elseif held >= max then
    answer[#answer + 1] = 'FULL'
  else
    redis.call('XADD', KEYS[3], '*', 'i', id)
    held = held + 1
    answer[#answer + 1] = 'OK'
  end
end
if held > 0 then redis.call('PEXPIRE', KEYS[3], life) end
return answer

-- Take messages out of an inbox: each is handed out once, however often it was delivered.
--
-- KEYS  1 the inbox (stream)
-- ARGV  1 prefix of the keys that remember what was taken   then pairs: stream entry, message id
-- RETURNS per pair the payload, or false where it is gone or was taken before
local answer = {}
for i = 2, #ARGV, 2 do
  local payload = 'ff:' .. ARGV[i + 1]
  local left = redis.call('PTTL', payload)
  answer[#answer + 1] = false
  -- It is remembered for longer than its time lasts: afterwards the cell does not take it for that reason.
  if left > 0 and redis.call('SET', ARGV[1] .. ARGV[i + 1], '1', 'NX', 'PX', left + 120000) then
    answer[#answer] = redis.call('GET', payload)
  end
  redis.call('XDEL', KEYS[1], ARGV[i])
end
return answer

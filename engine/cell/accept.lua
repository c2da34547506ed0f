-- Take messages out of an inbox: each is handed out once, however often it was delivered.
--
-- KEYS  1 the inbox (stream)
-- ARGV  1 prefix of the keys that remember what was taken   2 this call's own mark: sent twice over a broken line,
--       it gets the same answer   then pairs: stream entry, message id
-- RETURNS per pair the payload, or false where it is gone, is none, or was taken before
local answer, given = {}, {}
for i = 3, #ARGV, 2 do
  local id = ARGV[i + 1]
  local payload, seen = 'ff:' .. id, ARGV[1] .. id
  local left = redis.call('PTTL', payload)
  local by = redis.pcall('GET', seen) -- a key of another type, planted by somebody, is no reason to stop
  answer[#answer + 1] = false
  if left > 0 and not given[id] and (not by or by == ARGV[2]) then
    local frame = redis.pcall('GET', payload)
    if type(frame) == 'string' then
      -- Remembered for longer than its time lasts: afterwards the cell does not take it for that reason.
      redis.call('SET', seen, ARGV[2], 'PX', left + 120000)
      given[id] = true
      answer[#answer] = frame
    end
  end
  redis.call('XDEL', KEYS[1], ARGV[i])
end
return answer

-- Append events and change what derives from them, in one step or not at all.
--
-- KEYS  1 log (stream)   2 heads (hash)
--       All other keys are prefix .. name and share the log's hash tag.
-- ARGV  1 prefix   2 epoch   3 dedupe name or ""   4 arguments digest   5 dedupe life in s, 0 = until its work closes
--       6 guarded subject or ""   7 expected revision or ""
--       8 number of events n; then n * (type, subject, 1 if it counts in the revision else 0, d)
--       then operations until the end:
--         S key k f v ...      set k fields of a hash        I key field by      add to a hash field
--         Z key score member   put into a sorted set         R key member        take out of it
--         O work score k f v.. open work                     C work how token    close work; how = any, open, unclaimed, lapsed, token
--         K work token worker until_in_ms max                claim work, or hold on to it
--         P lane id                push an id into a lane's outbox
--         T lane token count       take the first ids out of it, if the lane is the token's
--         E                        a new epoch begins with these events
--         M lane id token worker   a send of message id (work aux_<id>) begins, where that is still open
--       A value or score may be \1m<i>[+<ms>] or \1p<i>: milliseconds or position of event i; \1= marks text.
-- RETURNS  {OK, ms, seq of the first, then subject, version, revision of each subject, then RING where
--           a push found its lane without an owner, and nobody has rung for it within a second}
--          {REPEAT, first answer}   {REUSED}   {CONFLICT, revision}   {REBUILD, why}   {EPOCH, current}
--          {FULL, why}      new work is opened, and prefix .. full says that there is no room for it
--          {DAMAGED, key}   {CLOSED, work}   {CLAIMED, work, until}   {FENCED, work}   {EXHAUSTED, work}   {EXPIRED, work}
-- Everything is checked first; then there are only writes that cannot fail, since Lua does not roll back.

local log, heads = KEYS[1], KEYS[2]
local prefix, epoch, dedupe, digest, life = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local guard, expected = ARGV[6], ARGV[7]
local call = redis.call

local function number(n) return string.format('%.0f', n) end

-- A look that a key of another type answers with an error; nil then, and false where there is nothing.
local function look(command, key, ...)
  local answer = redis.pcall(command, key, ...)
  if type(answer) == 'table' and answer.err then return nil end
  return answer
end

local checked = {}
local function usable(command, key)
  if checked[key] == nil then checked[key] = look(command, key) ~= nil end
  return checked[key]
end

-- 1. the log and its heads agree
local tail = look('XREVRANGE', log, '+', '-', 'COUNT', 1)
if tail == nil then return {'DAMAGED', log} end
local site = look('HMGET', heads, '@seq', '@ms', '@open', '@epoch')
if site == nil then return {'DAMAGED', heads} end
local seq, last_ms, open_count
local fresh = false
if site[1] and site[2] and site[3] and site[4] then
  seq, last_ms, open_count = tonumber(site[1]), tonumber(site[2]), tonumber(site[3])
  if not (seq and last_ms and open_count and tonumber(site[4])) then return {'REBUILD', 'heads unreadable'} end
  local stored = seq > 0 and (number(last_ms) .. '-' .. number(seq)) or nil
  if (tail[1] and tail[1][1] or nil) ~= stored then return {'REBUILD', 'heads and log end differ'} end
elseif tail[1] then
  return {'REBUILD', 'heads missing'}
else
  seq, last_ms, open_count, fresh = 0, 0, 0, true
  site[4] = epoch
end
if site[4] ~= epoch then return {'EPOCH', site[4]} end
local open_key = prefix .. 'open'
local opened = look('ZCARD', open_key)
if opened == nil then return {'DAMAGED', open_key} end
if opened ~= open_count then return {'REBUILD', 'open work and its count differ'} end

-- 2. the same call again
local dedupe_key = prefix .. dedupe
if dedupe ~= '' then
  local known = look('GET', dedupe_key)
  if known == nil then return {'DAMAGED', dedupe_key} end
  if known then
    local was, answer = string.match(known, '^(%S*) (.*)$')
    if was ~= digest then return {'REUSED'} end
    return {'REPEAT', answer}
  end
end

-- 3. subjects
local n = tonumber(ARGV[8])
local subjects, order = {}, {}
for i = 1, n do
  local name = ARGV[8 + (i - 1) * 4 + 2]
  if not subjects[name] then
    local s = {version = 0, revision = 0, positions = {}}
    local head = call('HGET', heads, name)
    if head then
      local v, r, base = string.match(head, '^(%d+) (%d+) %d+%-%d+ ?(%d*)$')
      if not v then return {'REBUILD', 'head of ' .. name .. ' unreadable'} end
      s.version, s.revision, s.base = tonumber(v), tonumber(r), base ~= '' and base or nil
    end
    local id = string.match(name, '^job/(.+)$')
    if id then
      s.index = prefix .. 'idx:' .. id
      local length = look('LLEN', s.index)
      if length == nil then return {'DAMAGED', s.index} end
      if length ~= s.version - tonumber(s.base or '0') then return {'REBUILD', 'index of ' .. name .. ' differs'} end
      local projection = prefix .. 'job:' .. id
      local fields = look('HLEN', projection)
      if fields == nil then return {'DAMAGED', projection} end
      checked[projection] = true
      if s.version > 0 and fields == 0 then return {'REBUILD', 'projection of ' .. name .. ' missing'} end
    end
    subjects[name] = s
    order[#order + 1] = name
  end
end
if expected ~= '' and subjects[guard].revision ~= tonumber(expected) then
  return {'CONFLICT', number(subjects[guard].revision)}
end

-- 4. operations: find them, check them
local time = call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local ms = math.max(now, last_ms)
-- What opens these is new; an abort, a delete, an end and what follows from it always have room.
local NEW = {deploy = true, launch = true, aux = true, transfer = true}
local full
local ops, at = {}, 8 + n * 4 + 1
while at <= #ARGV do
  local op = ARGV[at]
  if op == 'S' or op == 'I' then
    local key = prefix .. ARGV[at + 1]
    if not usable('HLEN', key) then return {'DAMAGED', key} end
    if op == 'I' then
      local is = call('HGET', key, ARGV[at + 2])
      -- 15 digits: far from where an addition would fail, after the writes have begun
      if is and not (string.match(is, '^%-?%d+$') and #is <= 15) then return {'DAMAGED', key} end
    end
    ops[#ops + 1] = at
    at = at + (op == 'S' and 3 + 2 * tonumber(ARGV[at + 2]) or 4)
  elseif op == 'Z' or op == 'R' then
    local key = prefix .. ARGV[at + 1]
    if not usable('ZCARD', key) then return {'DAMAGED', key} end
    ops[#ops + 1] = at
    at = at + (op == 'Z' and 4 or 3)
  elseif op == 'P' or op == 'T' then
    local out, lane = prefix .. 'out:' .. ARGV[at + 1], prefix .. 'lane:' .. ARGV[at + 1]
    if not usable('LLEN', out) then return {'DAMAGED', out} end
    if not usable('HLEN', lane) then return {'DAMAGED', lane} end
    if not usable('SCARD', prefix .. 'lanes') then return {'DAMAGED', prefix .. 'lanes'} end
    if op == 'T' and call('HGET', lane, 'token') ~= ARGV[at + 2] then return {'FENCED', ARGV[at + 1]} end
    ops[#ops + 1] = at
    at = at + (op == 'P' and 3 or 4)
  elseif op == 'E' then
    epoch = number(tonumber(epoch) + 1)
    at = at + 1
  elseif op == 'M' then
    local work, fly = prefix .. 'work:aux_' .. ARGV[at + 2], prefix .. 'fly:' .. ARGV[at + 1]
    local attempts = look('HGET', work, 'attempts')
    if attempts == nil or (attempts and not (string.match(attempts, '^%d+$') and #attempts <= 15)) then
      return {'DAMAGED', work}
    end
    if not usable('SCARD', fly) then return {'DAMAGED', fly} end
    ops[#ops + 1] = at
    at = at + 5
  else
    local work = prefix .. 'work:' .. ARGV[at + 1]
    local is = look('HMGET', work, 'token', 'until', 'attempts', 'kind')
    if is == nil then return {'DAMAGED', work} end
    local listed = call('ZSCORE', open_key, ARGV[at + 1])
    if (listed and not is[4]) or (is[4] and not listed) then return {'REBUILD', 'work ' .. ARGV[at + 1] .. ' incomplete'} end
    if is[3] and not string.match(is[3], '^%d+$') then return {'REBUILD', 'work ' .. ARGV[at + 1] .. ' unreadable'} end
    local held = is[1] and tonumber(is[2]) and tonumber(is[2]) > now
    if op == 'O' then
      if NEW[string.match(ARGV[at + 1], '^%a+')] and not is[4] then
        full = full or look('GET', prefix .. 'full')
        if full then return {'FULL', full} end
      end
      ops[#ops + 1] = at
      at = at + 4 + 2 * tonumber(ARGV[at + 3])
    elseif op == 'C' then
      local how = ARGV[at + 2]
      if how ~= 'any' and not is[4] then return {'CLOSED', ARGV[at + 1]} end
      if how == 'unclaimed' and is[1] then return {'CLAIMED', ARGV[at + 1], is[2]} end
      if how == 'lapsed' and held then return {'CLAIMED', ARGV[at + 1], is[2]} end
      if how == 'token' and is[1] ~= ARGV[at + 3] then return {'FENCED', ARGV[at + 1]} end
      ops[#ops + 1] = at
      at = at + 4
    elseif op == 'K' then
      if not is[4] then return {'CLOSED', ARGV[at + 1]} end
      if is[1] ~= ARGV[at + 2] then
        if held then return {'CLAIMED', ARGV[at + 1], is[2]} end
        if not is[1] and listed ~= 'inf' and tonumber(listed) < now then return {'EXPIRED', ARGV[at + 1]} end
        if tonumber(is[3] or '0') >= tonumber(ARGV[at + 5]) then return {'EXHAUSTED', ARGV[at + 1]} end
      end
      ops[#ops + 1] = at
      at = at + 6
    else
      return redis.error_reply('append.lua: unknown operation ' .. tostring(op))
    end
  end
end

-- 5. only writes from here on
local first = seq + 1
for i = 1, n do
  local a = 8 + (i - 1) * 4
  local name = ARGV[a + 2]
  local s = subjects[name]
  seq = seq + 1
  s.version = s.version + 1
  if ARGV[a + 3] == '1' then s.revision = s.revision + 1 end
  local position = number(ms) .. '-' .. number(seq)
  call('XADD', log, position, 't', ARGV[a + 1], 's', name, 'v', number(s.version), 'd', ARGV[a + 4])
  s.positions[#s.positions + 1] = position
  s.last = position
end

local function filled(value)
  if string.byte(value) ~= 1 then return value end
  if string.sub(value, 2, 2) == '=' then return string.sub(value, 3) end
  local what, i, plus = string.match(value, '^\1([mp])(%d+)%+?(%d*)$')
  if what == 'p' then return number(ms) .. '-' .. number(first + tonumber(i)) end
  return number(ms + (tonumber(plus) or 0))
end

local answer = {'OK', number(ms), number(first)}
local head_fields = {'@seq', number(seq), '@ms', number(ms)}
for _, name in ipairs(order) do
  local s = subjects[name]
  head_fields[#head_fields + 1] = name
  head_fields[#head_fields + 1] = number(s.version) .. ' ' .. number(s.revision) .. ' ' .. s.last .. (s.base and ' ' .. s.base or '')
  for from = 1, s.index and #s.positions or 0, 1000 do
    call('RPUSH', s.index, unpack(s.positions, from, math.min(from + 999, #s.positions)))
  end
  answer[#answer + 1] = name
  answer[#answer + 1] = number(s.version)
  answer[#answer + 1] = number(s.revision)
end

local ring = false
local opened_here = {} -- work that this append opens and that is open at its end
local before_ops = open_count
for _, o in ipairs(ops) do
  local op, name = ARGV[o], ARGV[o + 1]
  if op == 'S' then
    local pairs_ = {}
    for k = 1, 2 * tonumber(ARGV[o + 2]) do pairs_[k] = filled(ARGV[o + 2 + k]) end
    call('HSET', prefix .. name, unpack(pairs_))
  elseif op == 'I' then
    call('HINCRBY', prefix .. name, ARGV[o + 2], ARGV[o + 3])
  elseif op == 'Z' then
    call('ZADD', prefix .. name, filled(ARGV[o + 2]), ARGV[o + 3])
  elseif op == 'R' then
    call('ZREM', prefix .. name, ARGV[o + 2])
  elseif op == 'O' then
    local work = prefix .. 'work:' .. name
    local fields = {}
    for k = 1, 2 * tonumber(ARGV[o + 3]) do fields[k] = filled(ARGV[o + 3 + k]) end
    if call('ZADD', open_key, filled(ARGV[o + 2]), name) == 1 then
      open_count = open_count + 1
      call('DEL', work) -- whatever was planted there while it was not open
      if dedupe ~= '' and life == 0 then
        opened_here[name] = true
        fields[#fields + 1] = 'call'
        fields[#fields + 1] = dedupe
      end
    end
    call('HSET', work, unpack(fields))
  elseif op == 'C' then
    local work = prefix .. 'work:' .. name
    if call('ZREM', open_key, name) == 1 then
      open_count = open_count - 1
      opened_here[name] = nil
      local of = call('HGET', work, 'call')
      if of then call('EXPIRE', prefix .. of, 600) end
      call('DEL', work)
    end
  elseif op == 'P' then
    local lane = prefix .. 'lane:' .. name
    call('RPUSH', prefix .. 'out:' .. name, ARGV[o + 2])
    call('SADD', prefix .. 'lanes', name)
    local is = call('HMGET', lane, 'token', 'until', 'rung')
    local held = is[1] and (tonumber(is[2]) or 0) > now
    if not held and (tonumber(is[3] or '0') or 0) < now - 1000 then
      call('HSET', lane, 'rung', number(now))
      ring = true
    end
  elseif op == 'T' then
    call('LTRIM', prefix .. 'out:' .. name, ARGV[o + 3], -1)
  elseif op == 'M' then
    local work = prefix .. 'work:aux_' .. ARGV[o + 2]
    if call('ZSCORE', open_key, 'aux_' .. ARGV[o + 2]) then
      call('HSET', work, 'token', ARGV[o + 3], 'claimed_by', ARGV[o + 4], 'until', '0')
      call('HINCRBY', work, 'attempts', 1)
      call('SADD', prefix .. 'fly:' .. name, ARGV[o + 2])
    end
  elseif op == 'K' then
    local work = prefix .. 'work:' .. name
    if call('HGET', work, 'token') ~= ARGV[o + 2] then call('HINCRBY', work, 'attempts', 1) end
    call('HSET', work, 'token', ARGV[o + 2], 'claimed_by', ARGV[o + 3], 'until', ARGV[o + 4])
  end
end
if open_count ~= before_ops or fresh then
  head_fields[#head_fields + 1] = '@open'
  head_fields[#head_fields + 1] = number(open_count)
end
if epoch ~= ARGV[2] then
  head_fields[#head_fields + 1] = '@epoch'
  head_fields[#head_fields + 1] = epoch
end
if fresh then
  for _, field in ipairs({'@epoch', epoch, '@format', '1'}) do head_fields[#head_fields + 1] = field end
end
call('HSET', heads, unpack(head_fields))
if dedupe ~= '' then
  local known = digest .. ' ' .. table.concat(answer, ' ', 2)
  if next(opened_here) then
    call('SET', dedupe_key, known)
  else
    call('SET', dedupe_key, known, 'EX', life > 0 and life or 600)
  end
end
if ring then answer[#answer + 1] = 'RING' end
return answer

-- Put in front of every script's body (ScriptLibrary does it).
--
-- Invariants that all scripts keep:
--   * The fence is compared first; then everything is validated; only then is anything written.
--   * Writes go through `try` (redis.pcall). When one fails, the ones before it are undone in
--     reverse from values read earlier, and the error is raised: a failed call changed nothing.
--   * The clock is read once. Time never runs backwards for a bucket: max(TIME, meta.t).
--   * Quantities are whole and within 2^53 - 1. They are stored by cmsgpack (exact integers) or
--     as text by `int` ('%.0f'); never by tostring or '..', which round to 14 digits.
--
-- Reply codes (first element of an array reply):
--   0 done · 1 done before · 2 fenced · 3 mismatch · 4 id too old · 5 id from the future
--   6 expired · 7 stale · 8 rebuild · 9 period passed · 10 overflow · 11 conflict
--   12 counted: the bodies of what was counted are wanted
--   13 outbox full
local call, try = redis.call, redis.pcall
local encode, decode = cmsgpack.pack, cmsgpack.unpack
local floor, max, format, sub = math.floor, math.max, string.format, string.sub
local LARGEST = 9007199254740991

-- Microseconds since 1970.
local function clock()
  local t = call('TIME')
  return t[1] * 1000000 + t[2]
end

-- Undo commands of the writes so far; run last first when a later step fails.
local journal = {}
local function abort(err)
  for i = #journal, 1, -1 do
    try(unpack(journal[i]))
  end
  error(err)
end

-- One command after the first write: a failure undoes what the journal holds. `undo`: the command
-- that takes it back, nil for a read or where an earlier entry does so too.
local function write(undo, ...)
  local r = try(...)
  if type(r) == 'table' and r.err then
    abort(r)
  end
  if undo then
    journal[#journal + 1] = undo
  end
  return r
end

-- A whole number as text, every digit of it.
local function int(x)
  if x ~= floor(x) or x > LARGEST or x < -LARGEST then
    abort({err = 'ERR not a quantity'})
  end
  return format('%.0f', x)
end

-- Sets fields of a hash; `old` holds their values before (false: absent), in the same order.
local function set(key, fields, old)
  local back, gone = {'HSET', key}, {'HDEL', key}
  for i = 1, #fields, 2 do
    local was = old[(i + 1) / 2]
    if was then
      back[#back + 1] = fields[i]
      back[#back + 1] = was
    else
      gone[#gone + 1] = fields[i]
    end
  end
  write(nil, 'HSET', key, unpack(fields))
  if #back > 2 then
    journal[#journal + 1] = back
  end
  if #gone > 2 then
    journal[#journal + 1] = gone
  end
end

-- Takes the last n entries (after sequence `seq` of `epoch`) off a stream again, as if they had
-- never been added. XDEL alone would not do: the stream would refuse their ids from then on.
local function unappend(out, epoch, seq, n)
  if seq == 0 then
    try('UNLINK', out)
    return
  end
  local info = try('XINFO', 'STREAM', out)
  local added = n
  for i = 1, #info, 2 do
    if info[i] == 'entries-added' then
      added = info[i + 1]
    end
  end
  for i = 1, n do
    try('XDEL', out, epoch .. '-' .. format('%.0f', seq + i))
  end
  try('XSETID', out, epoch .. '-' .. format('%.0f', seq), 'ENTRIESADDED',
    format('%.0f', added - n))
end

-- Replaces a whole hash, keeping the way back.
local function replace(key, flat)
  local was = write(nil, 'HGETALL', key)
  local expiry = write(nil, 'PEXPIRETIME', key)
  if #was > 0 then
    write(nil, 'UNLINK', key)
    if expiry > 0 then
      journal[#journal + 1] = {'PEXPIREAT', key, expiry}
    end
    local step = 400
    for i = 1, #was, step do
      journal[#journal + 1] = {'HSET', key, unpack(was, i, math.min(i + step - 1, #was))}
    end
  end
  local first = true
  for i = 1, #flat, 400 do
    write(first and {'UNLINK', key} or nil, 'HSET', key,
      unpack(flat, i, math.min(i + 399, #flat)))
    first = false
  end
end

-- Expiry of a deeper subject's hash and its place in the account's index. Runs when the hash is
-- created and when its expiry moves, and then drops up to 16 expired members of the index, so
-- the index is never much larger than what lives. `expiry` NEVER: it stays.
local DAY = 86400000
local NEVER = 9007199254740991
local function touch(idx, key, before, expiry, now)
  local path = string.match(key, ':a:(.*)$')
  if expiry == NEVER then
    write(before > 0 and {'PEXPIREAT', key, int(before)} or nil, 'PERSIST', key)
  else
    write(before > 0 and {'PEXPIREAT', key, int(before)} or nil, 'PEXPIREAT', key, int(expiry))
  end
  local was = write(nil, 'ZSCORE', idx, path)
  local old = write(nil, 'ZRANGE', idx, '-inf', int(now), 'BYSCORE', 'LIMIT', 0, 16, 'WITHSCORES')
  local life = write(nil, 'PEXPIRETIME', idx)
  write(was and {'ZADD', idx, was, path} or {'ZREM', idx, path}, 'ZADD', idx, int(expiry), path)
  for i = 1, #old, 2 do
    if old[i] ~= path then
      write({'ZADD', idx, old[i + 1], old[i]}, 'ZREM', idx, old[i])
    end
  end
  if expiry == NEVER then
    if life > 0 then
      write({'PEXPIREAT', idx, life}, 'PERSIST', idx)
    end
  elseif life == -2 or (life > 0 and life < expiry) then
    write(life > 0 and {'PEXPIREAT', idx, life} or nil, 'PEXPIREAT', idx, int(expiry))
  end
end

-- How long the header of an account stays that was only looked at, ms. A change written into it
-- makes it stay for good.
local LOOKED = 60000
local function stays(key)
  local life = write(nil, 'PEXPIRETIME', key)
  if life > 0 then
    write({'PEXPIREAT', key, life}, 'PERSIST', key)
  end
end

-- When a deeper subject's hash may go: a day after the end of the longest period it counts in.
local function lifetime(periodEnd)
  return periodEnd >= NEVER - DAY and NEVER or periodEnd + DAY
end

-- The changes remembered of an account or of the global configuration (KEYS.md, field `op`):
-- 16 bytes of floor, then 40 each, newest first: id, fingerprint, result and time (ms). The floor is
-- the highest id that was dropped: whatever lies at or below it and is not remembered may have had
-- its effect already.
local CHANGES, CHANGE, FLOOR = 32, 40, 16

-- a <= b, byte by byte: '<' of Lua goes by the server's locale.
local function upTo(a, b)
  for i = 1, 16 do
    local x, y = string.byte(a, i), string.byte(b, i)
    if x ~= y then
      return x < y
    end
  end
  return true
end

-- nil: a change that is new; else the reply. `op`: 16 bytes of id and 8 of fingerprint.
local function known(memory, op, ms)
  memory = memory or ''
  local id = sub(op, 1, 16)
  for at = FLOOR + 1, #memory, CHANGE do
    if sub(memory, at, at + 15) == id then
      if sub(memory, at + 16, at + 23) ~= sub(op, 17, 24) then
        return {3, sub(memory, at + 16, at + 19) ~= sub(op, 17, 20) and 0 or 1}
      end
      local result, time = struct.unpack('>dd', memory, at + 24)
      return {1, int(result), int(time)}
    end
  end
  if memory ~= '' and upTo(id, memory) then
    return {4}
  end
  if struct.unpack('>I6', id) - ms > 60000 then
    return {5}
  end
end

-- The floor and entries, newest first, cut to what is remembered.
local function bounded(bottom, entries)
  for at = CHANGES * CHANGE + 1, #entries, CHANGE do
    local gone = sub(entries, at, at + 15)
    if upTo(bottom, gone) then
      bottom = gone
    end
  end
  return bottom .. sub(entries, 1, CHANGES * CHANGE)
end

local function remember(memory, op, result, ms)
  memory = memory or string.rep('\0', FLOOR)
  return bounded(sub(memory, 1, FLOOR),
    struct.pack('>c24dd', op, result, ms) .. sub(memory, FLOOR + 1))
end

-- Two memories of the same thing as one; nil where both are empty.
local function joined(a, b)
  if (a or '') == '' or (b or '') == '' then
    return (a or '') ~= '' and a or (b or '') ~= '' and b or nil
  end
  local all, seen = {}, {}
  for _, memory in ipairs({a, b}) do
    for at = FLOOR + 1, #memory, CHANGE do
      local entry = sub(memory, at, at + CHANGE - 1)
      local id = sub(entry, 1, 16)
      if not seen[id] then
        seen[id] = true
        local time = struct.unpack('>d', entry, 33)
        all[#all + 1] = {time, entry}
      end
    end
  end
  table.sort(all, function(x, y)
    if x[1] ~= y[1] then
      return x[1] > y[1]
    end
    return x[2] < y[2]
  end)
  local entries = {}
  for i = 1, #all do
    entries[i] = all[i][2]
  end
  return bounded(sub(upTo(a, b) and b or a, 1, FLOOR), table.concat(entries))
end

-- The fence of all scripts but `decide`: nil, or the FENCED reply. KEYS[1] is the bucket's meta,
-- ARGV[1] the text its field `f` must equal, ARGV[2] the highest sequence the caller has seen.
local function fenced(f, seq)
  if f ~= ARGV[1] or (tonumber(seq) or 0) < tonumber(ARGV[2]) then
    return {2, f, seq}
  end
end

-- Whether the outbox holds as much undelivered as a change may find there. Without a ledger nothing
-- is ever delivered, and `announce` bounds the stream itself.
local function crowded(seq, ack, allowed)
  allowed = tonumber(allowed)
  return allowed > 0 and seq - (tonumber(ack) or 0) >= allowed
end

-- The last writes of a change: its delta (KEYS[2]) and its audit entry (KEYS[4]).
local function announce(epoch, seq, ms, op, change, body, allowed)
  local id, d = epoch .. '-' .. int(seq + 1), sub(op, 1, 16) .. encode(3, 0, ms, change, 0, change)
  if allowed == '0' then
    write(nil, 'XADD', KEYS[2], 'MAXLEN', '~', '10000', id, 'd', d, 'b', body)
  else
    write(nil, 'XADD', KEYS[2], id, 'd', d, 'b', body)
  end
  local r = try('XADD', KEYS[4], 'MAXLEN', '~', '10000', '*', 't', int(ms), 'b', body,
    'o', sub(op, 1, 16))
  if type(r) == 'table' then
    unappend(KEYS[2], epoch, seq, 1)
    abort(r)
  end
end

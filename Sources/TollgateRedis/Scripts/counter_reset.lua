#!lua
-- Sets what limits see of one cell, by changing what is forgiven; what is billed does not move. Or
-- makes the whole burst of a rate available again. Either with its config delta and audit entry.
--
-- KEYS  1 meta · 2 outbox · 3 account header · 4 audit · 5 index and 6 hash of a deeper subject
-- ARGV  1 fence text · 2 seen sequence and time · 3 epoch
--       4 operation id and fingerprint (24 bytes)
--       5 field · 6 start and 7 end of the period (empty: the field is a rate) · 8 value
--       9 delta body · 10 where in the body the number before goes (17 bytes; 0: nowhere)
--       11 outbox entries allowed (0: there is no ledger)
-- Reply {0, epoch, sequence, now, before, after} · {1, forgiven, time} applied before under this id
--       {2, f, seq} · {3, half of the fingerprint that differs} · {4} · {5} · {8} · {9, now}
--       {10} · {13}
--
-- Invariants: an id has one effect, and one that may have been forgotten has none; settled is
--   untouched; the config delta carries the change (actual = absorbed = after - before, charged 0).
--   Safe against deltas in flight: they add to settled, and the offset stays. Of a grant nothing is
--   forgiven: there that place holds what came over into the instance. The audit entry is the
--   last write. Complexity: O(1).
-- include: base, journal, append, hashes, changes, fence, announce, tell
local M = call('HMGET', KEYS[1], 'f', 'seq', 't', 'ack')
local stop = fenced(M[1], M[2], M[3])
if stop then
  return stop
end
local H = call('HMGET', KEYS[3], 'e', 'op')
local now = max(clock(), tonumber(M[3]) or 0)
local ms = floor(now / 1000)
local answer = known(H[2], ARGV[4], ms)
if answer then
  return answer
end
local e = ARGV[3]
if H[1] ~= e then
  return {8}
end
local seq = tonumber(M[2]) or 0
if crowded(seq, M[4], ARGV[11]) then
  return {13}
end
assert(not string.find(ARGV[5], '|$', 1, true), 'nothing is forgiven of a grant')
local key = KEYS[6] or KEYS[3]
local row = call('HMGET', key, 'e', 'x', ARGV[5])
local current = row[1] == e
local before, value, body = 0, 0, ARGV[9]
if ARGV[6] == '' then
  -- Not dropped: where an epoch has just been opened, a rate without a state starts empty.
  if current then
    before = max((tonumber(row[3]) or now) - now, 0)
    set(key, {ARGV[5], int(now)}, {row[3]})
  end
else
  local first, last = tonumber(ARGV[6]), tonumber(ARGV[7])
  value = tonumber(ARGV[8])
  if ms < first or ms >= last then
    return {9, int(ms)}
  end
  local cell = {first, 0, 0, 0, 0, 0, 0}
  if current and row[3] then
    cell = {decode(row[3])}
    if cell[1] < first then
      cell = {first, 0, 0, 0, cell[1], cell[2], cell[3]}
    end
  end
  before = cell[2] - cell[4]
  cell[4], cell[8] = cell[2] - value, ms
  if cell[4] > LARGEST or cell[4] < -LARGEST then
    return {10}
  end
  local packed = encode(unpack(cell, 1, 8))
  if KEYS[6] then
    local life = lifetime(ARGV[5], first, last, ms)
    if not current then
      local stale = max(call('PEXPIRETIME', key), 0)
      replace(key, {'e', e, 'x', int(life), ARGV[5], packed})
      touch(KEYS[5], key, stale, life, ms)
    else
      set(key, {ARGV[5], packed}, {row[3]})
      local old = tonumber(row[2]) or 0
      if life > old then
        set(key, {'x', int(life)}, {row[2]})
        touch(KEYS[5], key, old, life, ms)
      end
    end
  else
    set(key, {ARGV[5], packed}, {row[3]})
  end
end
local hole = tonumber(ARGV[10])
if hole > 0 then
  body = sub(body, 1, hole) .. format('%-17.0f', before) .. sub(body, hole + 18)
end
local change = ARGV[6] == '' and 0 or value - before
local sequence = int(seq + 1)
set(KEYS[3], {'op', remember(H[2], ARGV[4], -change, ms)}, {H[2]})
set(KEYS[1], {'seq', sequence, 't', int(now)}, {M[2], M[3]})
tell(string.match(KEYS[3], ':a:([^/]*)'))
announce(e, seq, ms, ARGV[4], change, body, ARGV[11])
return {0, e, sequence, int(ms), int(before), int(value)}

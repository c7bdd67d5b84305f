#!lua
-- Appends a delta that was born earlier (in an epoch that is over, or by an operation older than
-- the dedupe window) to the current outbox, under its own identity, and counts it.
--
-- KEYS  1 meta · 2 outbox · 3 account header · 4 index of deeper subjects, 5... their hashes (4 only
--       where there are any)
-- ARGV  1 fence text · 2 seen sequence and time
--       3 MessagePack: epoch, kind, index, time ms, actual, charged, absorbed, number of hashes,
--         number of cells, and per cell: hash (1 = KEYS[3], 2 = KEYS[5]...), field, start, end, what
--         is added, and of a grant, else 0: amount, rollover from and to, start of the instance
--         before (-1: none), whether it was whole where nobody counted in it
--       4 operation id (16 bytes) · 5 body
-- Reply {0, sequence, now} · {2, f, seq} · {8} not seeded in this epoch · {10}
--
-- Invariants: counter and delta move together, or neither; no operation record, no limit, no
--   ceiling: the units were used. The counter moves in the delta's own period: the current one, the
--   one before, or a later one than the cell has seen. A period that is not held any more counts
--   nothing, and a slot is made for one only within the day in which a seed would hold it, so what
--   is held is always the whole of its period. Every counter gets its own amount: the cells of the
--   body all that was charged, its parts theirs. Where it is the first to write in an instance of a
--   grant, it notes what came over, as `transact` does. There is no marker: a repost whose reply is lost may
--   be made again, the ledger posts one and `reverse` takes the other back.
-- Complexity: O(cells).
-- include: base, journal, hashes, fence
local A = {decode(ARGV[3])}
local epoch, kind, index, time, actual, charged, absorbed, hashes, cells = unpack(A, 1, 9)
-- include: begin
local e = format('%.0f', epoch)
if call('HGET', KEYS[3], 'e') ~= e then
  return {8}
end
-- What comes over into the instance of a grant at `b`, where `cell` is how its counter was found.
local function carried(b, cell)
  if A[b + 9] < 0 then
    return 0
  end
  local left = A[b + 10] == 1 and A[b + 6] or nil
  if cell and cell[1] == A[b + 9] then
    left = math.min(A[b + 6], max(0, A[b + 6] + cell[4] - cell[2] - cell[3]))
  end
  return left and math.min(A[b + 8], max(A[b + 7], left)) or 0
end
local changes = {}
for k = 1, hashes do
  local key = k == 1 and KEYS[3] or KEYS[k + 3]
  local places, names = {}, {}
  for c = 1, cells do
    local b = 9 + (c - 1) * 10
    if A[b + 1] == k then
      places[#places + 1], names[#names + 1] = b, A[b + 2]
    end
  end
  local row = call('HMGET', key, 'e', 'x', unpack(names))
  local fields, old, life = {}, {}, 0
  for i = 1, #places do
    local b = places[i]
    local start, amount, own = A[b + 3], A[b + 5], lifetime(A[b + 2], A[b + 3], A[b + 4], ms)
    local fresh, ofGrant = own > ms, string.find(A[b + 2], '|$', 1, true)
    local raw = row[1] == e and row[i + 2]
    local cell
    if raw then
      cell = {decode(raw)}
      if cell[1] == start then
        cell[2] = cell[2] + amount
        -- Nothing can be forgiven that was not counted.
        if amount < 0 and not ofGrant and cell[4] > 0 and cell[4] > cell[2] then
          cell[4] = max(0, cell[2])
        end
      elseif cell[5] == start then
        cell[6] = cell[6] + amount
      elseif fresh and cell[1] < start then
        cell = {start, amount, 0, carried(b, cell), cell[1], cell[2], cell[3]}
      elseif fresh and cell[5] < start then
        cell[5], cell[6], cell[7] = start, amount, 0
      else
        cell = nil
      end
    elseif fresh then
      cell = {start, amount, 0, carried(b), 0, 0, 0}
    end
    if cell then
      if cell[2] < -LARGEST or cell[6] < -LARGEST or cell[2] > LARGEST or cell[6] > LARGEST then
        return {10}
      end
      fields[#fields + 1], fields[#fields + 2] = names[i],
        encode(unpack(cell, 1, cell[8] and 8 or 7))
      old[#old + 1] = raw or false
      life = max(life, own)
    end
  end
  if #fields > 0 then
    changes[#changes + 1] = {k, key, row, fields, old, life}
  end
end
local seq = tonumber(M[2]) or 0
local sequence = int(seq + 1)
for i = 1, #changes do
  local k, key, row, fields, old, life = unpack(changes[i], 1, 6)
  if k == 1 then
    set(key, fields, old)
  elseif row[1] == e then
    set(key, fields, old)
    local before = tonumber(row[2]) or 0
    if life > before then
      set(key, {'x', int(life)}, {row[2]})
      touch(KEYS[4], key, before, life, ms)
    end
  else
    local stale = max(write(nil, 'PEXPIRETIME', key), 0)
    local flat = {'e', e, 'x', int(life)}
    for f = 1, #fields do
      flat[f + 4] = fields[f]
    end
    replace(key, flat)
    touch(KEYS[4], key, stale, life, ms)
  end
end
set(KEYS[1], {'seq', sequence, 't', int(now)}, {M[2], M[3]})
write(nil, 'XADD', KEYS[2], e .. '-' .. sequence, 'd',
  ARGV[4] .. encode(kind, index, time, actual, charged, absorbed), 'b', ARGV[5])
return {0, sequence, int(ms)}

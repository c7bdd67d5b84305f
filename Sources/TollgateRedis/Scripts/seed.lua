#!lua
-- Sets the counters of one account from the ledger's balances, after its bucket got a new epoch.
--
-- KEYS  1 meta · 2 account header · 3 index of deeper subjects · 4... their hashes
-- ARGV  1 fence text · 2 seen sequence and time
--       3 MessagePack: epoch, last chunk (1, or 2: for a read of an account of which nothing is
--         known) or not, account version, number of cells, whether the
--         ledger lost entries of this bucket (1) or is whole, and per cell: hash (1 header,
--         2 = KEYS[4]...), field, period end, start, settled, forgiven (of a grant: what came over
--         into the instance), start and settled of the period before
--       4 account configuration (JSON), or empty · 5 changes the ledger remembers, or empty
-- Reply {0} seeded · {1} the account is current already · {2, f, seq}
--
-- Invariants: values are set, never added; the last chunk marks the header with the epoch and is
--   the only one that does; a current header makes every chunk a no-op. Counters of an older epoch
--   are dropped, the newer of two configurations is kept, and what either side remembers of changes.
--   Where the ledger lost entries, counters of the epoch the account was seeded in before are no
--   less true than its sums: of each period the greater settled and forgiven stand, and the lesser
--   that came over into a grant, so that no limit sees less than it did. A header made for a read bears `<epoch>?`, no counter and an
--   expiry, and is written only where there is none: any seed for a write replaces it.
-- Complexity: O(cells + fields of the hashes written).
-- include: base, journal, hashes, changes, fence, header
local A, position = {}, 0
repeat
  -- In pieces: one call may return only as many values as Lua's stack holds.
  local part = {cmsgpack.unpack_limit(ARGV[3], 1000, position)}
  position = part[1]
  for i = 2, #part do
    A[#A + 1] = part[i]
  end
until position == -1
local epoch, last, version, count, lossy = unpack(A, 1, 5)
-- include: begin
local e = format('%.0f', epoch)
local H = call('HMGET', KEYS[2], 'e', 'v', 'cfg', 'op')
if H[1] == e then
  return {1}
end
if last == 2 then
  local looked = H[1] and sub(H[1], -1) == '?' and (H[2] or '0') == '0'
  if H[1] == e .. '?' or (not looked and (H[1] or H[2] or H[3] or H[4])) then
    return {1}
  end
  replace(KEYS[2], {'e', e .. '?', 'v', '0'})
  write(nil, 'PEXPIREAT', KEYS[2], int(floor(now / 1000) + LOOKED))
  return {0}
end
-- Two cells of one counter, period by period the greater, the latest two periods of them.
local function greater(field, a, b)
  local of, ofGrant = {}, string.find(field, '|$', 1, true)
  -- Of a period before nobody knows what came over into it.
  local none = ofGrant and NEVER or 0
  local P = {{a[1], a[2], a[4]}, {a[5], a[6], none}, {b[1], b[2], b[4]}, {b[5], b[6], none}}
  local starts = {}
  for i = 1, 4 do
    local p = P[i]
    local known = of[p[1]]
    if known then
      known[2] = max(known[2], p[2])
      known[3] = ofGrant and math.min(known[3], p[3]) or max(known[3], p[3])
    else
      of[p[1]], starts[#starts + 1] = p, p[1]
    end
  end
  table.sort(starts)
  local n, was = of[starts[#starts]], of[starts[#starts - 1]] or {0, 0}
  return encode(n[1], n[2], 0, n[3] < NEVER and n[3] or 0, was[1], was[2], 0)
end
-- Adds to the fields and values `w` what the hash's own cells hold beyond them.
local function keep(w, key)
  local flat, at = write(nil, 'HGETALL', key), {}
  for i = 1, #w, 2 do
    at[w[i]] = i + 1
  end
  for i = 1, #flat, 2 do
    local field = flat[i]
    if string.find(field, '|', 1, true) and sub(field, 1, 1) ~= '^' then
      local old, place = {decode(flat[i + 1])}, at[field]
      if place then
        w[place] = greater(field, {decode(w[place])}, old)
      else
        w[#w + 1], w[#w + 2] = field, greater(field, old, old)
      end
    end
  end
end
local W, life = {}, {}
for c = 1, count do
  local b = 5 + (c - 1) * 8
  local k = A[b + 1]
  local w = W[k]
  if not w then
    w = {}
    W[k], life[k] = w, 0
  end
  w[#w + 1] = A[b + 2]
  w[#w + 1] = encode(A[b + 4], A[b + 5], 0, A[b + 6], A[b + 7], A[b + 8], 0)
  life[k] = max(life[k], lifetime(A[b + 2], A[b + 4], A[b + 3], floor(now / 1000)))
end
for k = 2, #KEYS - 2 do
  local w = W[k]
  local key = KEYS[k + 2]
  local row = (w or lossy == 1) and write(nil, 'HMGET', key, 'e', 'x')
  if row and lossy == 1 and row[1] and (row[1] == e or row[1] == H[1]) then
    w, life[k] = w or {}, max(life[k] or 0, tonumber(row[2]) or 0)
    keep(w, key)
  end
  if w and #w > 0 then
    if row[1] == e then
      -- A later chunk of the same seeding, or another sidecar's: fields are set over.
      local names = {}
      for i = 1, #w, 2 do
        names[#names + 1] = w[i]
      end
      set(key, w, write(nil, 'HMGET', key, unpack(names)))
      local before = tonumber(row[2]) or 0
      if life[k] > before then
        set(key, {'x', int(life[k])}, {row[2]})
        touch(KEYS[3], key, before, life[k], floor(now / 1000))
      end
    else
      local before = max(write(nil, 'PEXPIRETIME', key), 0)
      local flat = {'e', e, 'x', int(life[k])}
      for i = 1, #w do
        flat[i + 4] = w[i]
      end
      replace(key, flat)
      touch(KEYS[3], key, before, life[k], floor(now / 1000))
    end
  end
end
if last == 1 then
  local v, cfg = H[2], H[3]
  if ARGV[4] ~= '' and version > (tonumber(v) or -1) then
    v, cfg = int(version), ARGV[4]
  end
  local flat = {'e', e, 'v', v or int(version)}
  if cfg then
    flat[#flat + 1] = 'cfg'
    flat[#flat + 1] = cfg
  end
  local memory = joined(H[4], ARGV[5])
  if memory then
    flat[#flat + 1] = 'op'
    flat[#flat + 1] = memory
  end
  local w = W[1] or {}
  if lossy == 1 and H[1] then
    keep(w, KEYS[2])
  end
  for i = 1, #w do
    flat[#flat + 1] = w[i]
  end
  replace(KEYS[2], flat)
end
return {0}

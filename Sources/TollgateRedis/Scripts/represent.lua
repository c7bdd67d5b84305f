#!lua flags=allow-oom
-- Brings a hold into an epoch: one that lies here from an older one, or one that was lost, as a
-- sidecar that made it remembers it.
--
-- KEYS  as for `expire`, with one reservation
-- ARGV  1 fence text · 2 seen sequence · 3 epoch · 4 depth of the subject · 5 subject
--       6 id of the reservation · 7 the hold (part_hold.lua); empty: one of an older epoch that lies
--       here is not true any more, and goes. Without an id: all are brought that are known of, and
--       the account's header says so (`hr`)
-- Reply {0} it is back · {1} it is there, or has ended · {2, f, seq} · {8} not seeded in this
--       epoch · {10}
--
-- Invariants: a reservation is held once, however many bring it, and not at all where it is written
--   down that it was settled or released: what of it lies here then goes, whatever its epoch, and
--   what it holds is free. What was settled of it is in the ledger's sums, only what it still holds
--   is added. Complexity: O(counts of the hold).
-- include: base, journal, hashes, fence, begin, ending
if ARGV[6] == '' then
  set(KEYS[5], {'hr', e}, {call('HGET', KEYS[5], 'hr')})
  return {0}
end
-- include: rows, hold
local was = call('HGET', KEYS[HOLDS], ARGV[6])
local ended = call('HGET', KEYS[HOLDS + 3], ARGV[6])
local state = ended and decode(ended) or 0
local isOver = state == 1 or state == 2
if ARGV[7] == '' or isOver then
  local hold = was and readHold(was)
  if hold and hold.subject == ARGV[5] and (isOver or hold.epoch ~= tonumber(e)) then
    if not free(hold, tonumber(e)) then
      return {10}
    end
    writeRows()
    keepHold(ARGV[6], nil, nil, was)
    schedule(string.match(ARGV[5], '^[^/]*'), header[2])
    set(KEYS[1], {'t', int(now)}, {M[3]})
  end
  return {isOver and 1 or 0}
end
-- Of two the one that was settled more often is what became of it later, then the one that was
-- extended further.
local function isLater(a, b)
  return a.settles > b.settles or (a.settles == b.settles and a.expires > b.expires)
end
local told, lies = readHold(ARGV[7]), was and readHold(was)
if lies and not isLater(told, lies) then
  told = lies
  if lies.epoch == tonumber(e) then
    return {1}
  end
end
-- What expired only because whoever brought it did not know that it was extended is held again.
local revived = not was and state == 3 and isLater(told, readHold(ended))
  and told.expires + GRACE > ms
if not was and ended and not revived then
  return {1}
end
local hold = told
if hold.subject ~= ARGV[5] or hold.state ~= 0 then
  return {1}
end
if lies and lies ~= hold and not free(lies, tonumber(e)) then
  return {10}
end
for k = 1, #hold.counts do
  local c = hold.counts[k]
  if c[7] ~= 0 then
    local name = fieldIn(hold, c)
    load(c[2], {name})
    if not add(c[2], name, c[4], c[5], 0, c[7], c[8]) then
      return {10}
    end
  end
end
writeRows()
hold.epoch = tonumber(e)
if revived then
  write({'HSET', KEYS[HOLDS + 3], ARGV[6], ended}, 'HDEL', KEYS[HOLDS + 3], ARGV[6])
end
keepHold(ARGV[6], packHold(hold), hold.expires + GRACE, was)
schedule(string.match(ARGV[5], '^[^/]*'), header[2])
set(KEYS[1], {'t', int(now)}, {M[3]})
return {0}

#!lua flags=allow-oom
-- Drops delivered entries from an outbox, keeping a tail, and notes how far the ledger is.
--
-- KEYS  1 meta · 2 outbox
-- ARGV  1 fence text · 2 seen sequence · 3 epoch · 4 acknowledged sequence · 5 tail
-- Reply {0, entries dropped} · {2, f, seq}
--
-- Invariants: trimmed by MINID, never XDEL, so the ids keep counting; never beyond what was
--   acknowledged. Complexity: O(entries dropped).
local M = call('HMGET', KEYS[1], 'f', 'seq', 'ack')
local stop = fenced(M[1], M[2])
if stop then
  return stop
end
local acknowledged = tonumber(ARGV[4])
assert(acknowledged <= (tonumber(M[2]) or 0), 'acknowledged beyond the outbox')
if acknowledged > (tonumber(M[3]) or 0) then
  set(KEYS[1], {'ack', int(acknowledged)}, {M[3]})
end
local first = acknowledged - tonumber(ARGV[5]) + 1
if first <= 1 then
  return {0, 0}
end
return {0, write(nil, 'XTRIM', KEYS[2], 'MINID', ARGV[3] .. '-' .. int(first))}

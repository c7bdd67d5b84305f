#!lua flags=allow-oom
-- Drops delivered entries from an outbox, keeping a tail, and notes how far the ledger is. Called
-- when every duplicate up to there has been taken back.
--
-- KEYS  1 meta · 2 outbox · 3 marks of what was taken back
-- ARGV  1 fence text · 2 seen sequence and time · 3 epoch · 4 acknowledged sequence · 5 tail
-- Reply {0, entries dropped} · {2, f, seq}
--
-- Invariants: trimmed by MINID, never XDEL, so the ids keep counting; never beyond what was
--   acknowledged; a mark goes only when meta.ack has passed it (up to 2,000 in one call, the rest
--   later: they mean nothing any more). Complexity: O(entries and marks dropped).
-- include: base, journal, fence
local M = call('HMGET', KEYS[1], 'f', 'seq', 't', 'ack')
local stop = fenced(M[1], M[2], M[3])
if stop then
  return stop
end
local acknowledged = tonumber(ARGV[4])
assert(acknowledged <= (tonumber(M[2]) or 0), 'acknowledged beyond the outbox')
if acknowledged > (tonumber(M[4]) or 0) then
  set(KEYS[1], {'ack', int(acknowledged)}, {M[4]})
  local marks = write(nil, 'ZRANGE', KEYS[3], '-inf', int(acknowledged), 'BYSCORE', 'LIMIT', 0,
    2000, 'WITHSCORES')
  if #marks > 0 then
    local back, gone = {'ZADD', KEYS[3]}, {'ZREM', KEYS[3]}
    for i = 1, #marks, 2 do
      gone[#gone + 1] = marks[i]
      back[i + 2], back[i + 3] = marks[i + 1], marks[i]
    end
    write(back, unpack(gone))
  end
end
local first = acknowledged - tonumber(ARGV[5]) + 1
if first <= 1 then
  return {0, 0}
end
return {0, write(nil, 'XTRIM', KEYS[2], 'MINID', ARGV[3] .. '-' .. int(first))}

#!lua
-- Sets one account's configuration, with its config delta and an audit entry.
--
-- KEYS  1 meta · 2 outbox · 3 account header · 4 audit
-- ARGV  1 fence text · 2 seen sequence and time · 3 epoch
--       4 operation id and fingerprint (24 bytes)
--       5 expected version · 6 new version · 7 configuration (JSON) · 8 delta body
--       9 outbox entries allowed (0: there is no ledger)
-- Reply {0, epoch, sequence, now} · {1, version, time} applied before under this id
--       {2, f, seq} · {3, half of the fingerprint that differs} · {4} · {5}
--       {11, version that stands} · {13}
--
-- Invariants: an id has one effect, and one that may have been forgotten has none; the version
--   only grows; works on a header that is not seeded, and leaves its epoch alone; a counter is
--   never touched. The audit entry is the last write. Complexity: O(1).
-- include: base, journal, append, changes, fence, announce, header, tell
local M = call('HMGET', KEYS[1], 'f', 'seq', 't', 'ack')
local stop = fenced(M[1], M[2], M[3])
if stop then
  return stop
end
local H = call('HMGET', KEYS[3], 'v', 'cfg', 'op')
local now = max(clock(), tonumber(M[3]) or 0)
local ms = floor(now / 1000)
local answer = known(H[3], ARGV[4], ms)
if answer then
  return answer
end
local version, new = tonumber(H[1]) or 0, tonumber(ARGV[6])
if version ~= tonumber(ARGV[5]) or new <= version then
  return {11, int(version)}
end
local seq = tonumber(M[2]) or 0
if crowded(seq, M[4], ARGV[9]) then
  return {13}
end
local sequence = int(seq + 1)
stays(KEYS[3])
set(KEYS[3], {'v', int(new), 'cfg', ARGV[7], 'op', remember(H[3], ARGV[4], new, ms)}, H)
set(KEYS[1], {'seq', sequence, 't', int(now)}, {M[2], M[3]})
tell(string.match(KEYS[3], ':a:([^/]*)'))
announce(ARGV[3], seq, ms, ARGV[4], 0, ARGV[8], ARGV[9])
return {0, ARGV[3], sequence, int(ms)}

#!lua
-- Sets the global configuration on the control bucket, with its config delta, the catalog document
-- where there is a new one, and an audit entry.
--
-- KEYS  1 meta · 2 outbox · 3 global · 4 audit · 5 catalogs
-- ARGV  1 fence text · 2 seen sequence and time · 3 epoch
--       4 operation id and fingerprint (24 bytes)
--       5 expected version · 6 new version · 7 configuration (JSON) · 8 delta body
--       9 outbox entries allowed (0: there is no ledger) · 10 catalog number (0: none)
--       11 catalog document · 12 number of the catalog to forget (below 1: none)
-- Reply {0, epoch, sequence, now} · {1, version, time} applied before under this id
--       {2, f, seq} · {3, half of the fingerprint that differs} · {4} · {5}
--       {11, version that stands} · {13}
--
-- Invariants: an id has one effect, and one that may have been forgotten has none; the version
--   only grows, and meta.gv of this bucket with it; catalogs are bounded, because each new one
--   forgets one. The audit entry is the last write. Complexity: O(1).
-- include: base, journal, append, changes, fence, announce, tell
local M = call('HMGET', KEYS[1], 'f', 'seq', 't', 'gv', 'ack')
local stop = fenced(M[1], M[2], M[3])
if stop then
  return stop
end
local H = call('HMGET', KEYS[3], 'version', 'cfg', 'op')
local now = max(clock(), tonumber(M[3]) or 0)
local ms = floor(now / 1000)
local answer = known(H[3], ARGV[4], ms)
if answer then
  return answer
end
local version, n = tonumber(H[1]) or 0, tonumber(ARGV[6])
if version ~= tonumber(ARGV[5]) or n <= version then
  return {11, int(version)}
end
local seq = tonumber(M[2]) or 0
if crowded(seq, M[5], ARGV[9]) then
  return {13}
end
local sequence, new = int(seq + 1), int(n)
if ARGV[10] ~= '0' then
  set(KEYS[5], {ARGV[10], ARGV[11]}, write(nil, 'HMGET', KEYS[5], ARGV[10]))
  local forgotten = tonumber(ARGV[12]) > 0 and write(nil, 'HGET', KEYS[5], ARGV[12])
  if forgotten then
    write({'HSET', KEYS[5], ARGV[12], forgotten}, 'HDEL', KEYS[5], ARGV[12])
  end
end
set(KEYS[3], {'version', new, 'cfg', ARGV[7], 'op', remember(H[3], ARGV[4], n, ms)}, H)
set(KEYS[1], {'seq', sequence, 't', int(now), 'gv', new}, {M[2], M[3], M[4]})
tell('*')
announce(ARGV[3], seq, ms, ARGV[4], 0, ARGV[8], ARGV[9])
return {0, ARGV[3], sequence, int(ms)}

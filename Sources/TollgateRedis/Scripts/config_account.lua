#!lua
-- Sets one account's configuration, with its config delta and an audit entry.
--
-- KEYS  1 meta · 2 outbox · 3 account header · 4 audit
-- ARGV  1 fence text · 2 seen sequence · 3 epoch · 4 operation id · 5 expected version
--       6 new version · 7 configuration (JSON) · 8 delta body
-- Reply {0, epoch, sequence, now} · {1} applied before under this id · {2, f, seq}
--       {11, version that stands}
--
-- Invariants: the version only grows; works on a header that is not seeded, and leaves its epoch
--   alone; a counter is never touched. The audit entry is the last write. Complexity: O(1).
local M = call('HMGET', KEYS[1], 'f', 'seq', 't')
local stop = fenced(M[1], M[2])
if stop then
  return stop
end
local H = call('HMGET', KEYS[3], 'v', 'cfg', 'op')
if remembers(H[3], ARGV[4]) then
  return {1}
end
local version = tonumber(H[1]) or 0
if version ~= tonumber(ARGV[5]) or tonumber(ARGV[6]) <= version then
  return {11, int(version)}
end
local now = max(clock(), tonumber(M[3]) or 0)
local ms = floor(now / 1000)
local seq = tonumber(M[2]) or 0
local sequence = int(seq + 1)
set(KEYS[3], {'v', int(tonumber(ARGV[6])), 'cfg', ARGV[7], 'op', remember(H[3], ARGV[4])}, H)
set(KEYS[1], {'seq', sequence, 't', int(now)}, {M[2], M[3]})
write(nil, 'XADD', KEYS[2], ARGV[3] .. '-' .. sequence, 'd',
  ARGV[4] .. encode(3, 0, ms, 0, 0, 0), 'b', ARGV[8])
local r = try('XADD', KEYS[4], 'MAXLEN', '~', '10000', '*', 't', int(ms), 'b', ARGV[8])
if type(r) == 'table' then
  unappend(KEYS[2], ARGV[3], seq, 1)
  abort(r)
end
return {0, ARGV[3], sequence, int(ms)}

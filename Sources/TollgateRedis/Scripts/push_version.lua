#!lua flags=allow-oom
-- Tells one bucket of a new global version.
--
-- KEYS  1 meta
-- ARGV  1 fence text · 2 seen sequence and time · 3 global version
-- Reply {0, version in force} · {2, f, seq}
--
-- Invariant: the version only grows. Complexity: O(1).
-- include: base, journal, fence
local M = call('HMGET', KEYS[1], 'f', 'seq', 't', 'gv')
local stop = fenced(M[1], M[2], M[3])
if stop then
  return stop
end
local version = tonumber(ARGV[3])
if version <= (tonumber(M[4]) or -1) then
  return {0, M[4]}
end
set(KEYS[1], {'gv', int(version)}, {M[4]})
return {0, int(version)}

#!lua flags=allow-oom
-- Tells one bucket of a new global version.
--
-- KEYS  1 meta
-- ARGV  1 fence text · 2 seen sequence · 3 global version
-- Reply {0, version in force} · {2, f, seq}
--
-- Invariant: the version only grows. Complexity: O(1).
local M = call('HMGET', KEYS[1], 'f', 'seq', 'gv', 'ct', 't')
local stop = fenced(M[1], M[2])
if stop then
  return stop
end
local version = tonumber(ARGV[3])
if version <= (tonumber(M[3]) or -1) then
  return {0, M[3]}
end
local ms = floor(max(clock(), tonumber(M[5]) or 0) / 1000)
set(KEYS[1], {'gv', int(version), 'ct', int(ms)}, {M[3], M[4]})
return {0, int(version)}

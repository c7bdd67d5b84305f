#!lua
-- Puts the global configuration back from the ledger, where Redis has none or an older one, and a
-- catalog of its history, where Redis has none of that number. No delta and no audit entry: both
-- exist in the ledger, or there is none.
--
-- KEYS  1 meta of the control bucket · 2 global · 3 catalogs
-- ARGV  1 fence text · 2 seen sequence and time · 3 version · 4 configuration (JSON)
--       5 changes the ledger remembers, or empty
--       6 catalog number (0: none) · 7 its document
-- Reply {0, version in force} · {2, f, seq}
--
-- Invariant: never replaces a newer version, nor a catalog. Complexity: O(1).
-- include: base, journal, changes, fence, tell
local M = call('HMGET', KEYS[1], 'f', 'seq', 't', 'gv')
local stop = fenced(M[1], M[2], M[3])
if stop then
  return stop
end
local H = call('HMGET', KEYS[2], 'version', 'cfg', 'op')
local version = tonumber(ARGV[3])
if ARGV[6] ~= '0' and not call('HGET', KEYS[3], ARGV[6]) then
  set(KEYS[3], {ARGV[6], ARGV[7]}, {false})
end
if version <= (tonumber(H[1]) or -1) then
  return {0, H[1]}
end
local fields, memory = {'version', int(version), 'cfg', ARGV[4]}, joined(H[3], ARGV[5])
if memory then
  fields[5], fields[6] = 'op', memory
end
set(KEYS[2], fields, H)
if version > (tonumber(M[4]) or -1) then
  set(KEYS[1], {'gv', int(version)}, {M[4]})
end
tell('*')
return {0, int(version)}

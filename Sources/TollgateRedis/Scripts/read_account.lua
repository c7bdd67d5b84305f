#!lua flags=no-writes
-- One moment of an account: header with counters, and which deeper subjects are live.
--
-- KEYS  1 meta · 2 account header · 3 index of deeper subjects
-- ARGV  1 how many subjects at most
-- Reply {0, f, seq, acknowledged, now, {field, value, ...}, {path, ...}}
--
-- Complexity: O(fields + subjects).
-- include: base, journal
local M = call('HMGET', KEYS[1], 'f', 'seq', 'ack', 't')
local ms = floor(max(clock(), tonumber(M[4]) or 0) / 1000)
return {0, M[1], M[2], M[3], int(ms), call('HGETALL', KEYS[2]),
  call('ZRANGE', KEYS[3], int(ms), '+inf', 'BYSCORE', 'LIMIT', 0, ARGV[1])}

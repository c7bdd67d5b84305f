#!lua
-- Writes the deployment record where there is none, and answers the one that stands.
--
-- KEYS  1 the record
-- ARGV  1 id · 2 buckets · 3 hash name · 4 key version · 5 mode
-- Reply {0, id, buckets, hash, key version, mode} as recorded
--
-- Invariant: a record is never changed. Complexity: O(1).
-- include: base, journal
if call('EXISTS', KEYS[1]) == 0 then
  write({'UNLINK', KEYS[1]}, 'HSET', KEYS[1], 'id', ARGV[1], 'buckets', ARGV[2], 'hash', ARGV[3], 'keyVersion',
    ARGV[4], 'mode', ARGV[5])
end
local R = write(nil, 'HMGET', KEYS[1], 'id', 'buckets', 'hash', 'keyVersion', 'mode')
return {0, R[1], R[2], R[3], R[4], R[5]}

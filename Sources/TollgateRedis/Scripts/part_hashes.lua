-- Whole hashes, and the deeper subjects among them. Needs: journal.

-- Replaces a whole hash, keeping the way back.
local function replace(key, flat)
  local was = write(nil, 'HGETALL', key)
  local expiry = write(nil, 'PEXPIRETIME', key)
  if #was > 0 then
    write(nil, 'UNLINK', key)
    if expiry > 0 then
      journal[#journal + 1] = {'PEXPIREAT', key, expiry}
    end
    local step = 400
    for i = 1, #was, step do
      journal[#journal + 1] = {'HSET', key, unpack(was, i, math.min(i + step - 1, #was))}
    end
  end
  local first = true
  for i = 1, #flat, 400 do
    write(first and {'UNLINK', key} or nil, 'HSET', key,
      unpack(flat, i, math.min(i + 399, #flat)))
    first = false
  end
end

-- Expiry of a deeper subject's hash and its place in the account's index. Runs when the hash is
-- created and when its expiry moves, and then drops up to 16 expired members of the index, so
-- the index is never much larger than what lives.
local function touch(idx, key, before, expiry, now)
  local path = string.match(key, ':a:(.*)$')
  write(before > 0 and {'PEXPIREAT', key, int(before)} or nil, 'PEXPIREAT', key, int(expiry))
  local was = write(nil, 'ZSCORE', idx, path)
  local old = write(nil, 'ZRANGE', idx, '-inf', int(now), 'BYSCORE', 'LIMIT', 0, 16, 'WITHSCORES')
  local life = write(nil, 'PEXPIRETIME', idx)
  write(was and {'ZADD', idx, was, path} or {'ZREM', idx, path}, 'ZADD', idx, int(expiry), path)
  for i = 1, #old, 2 do
    if old[i] ~= path then
      write({'ZADD', idx, old[i + 1], old[i]}, 'ZREM', idx, old[i])
    end
  end
  if life < expiry then
    write(life > 0 and {'PEXPIREAT', idx, life} or nil, 'PEXPIREAT', idx, int(expiry))
  end
end

-- A deeper subject in which nothing is counted any more goes, and its place in the index with it.
local function drop(idx, key)
  local path = string.match(key, ':a:(.*)$')
  replace(key, {})
  local score = write(nil, 'ZSCORE', idx, path)
  local life = write(nil, 'PEXPIRETIME', idx)
  if score then
    journal[#journal + 1] = life > 0 and {'PEXPIREAT', idx, life} or nil
    write({'ZADD', idx, score, path}, 'ZREM', idx, path)
  end
end

-- When a deeper subject's hash may go: a day after the end of the longest period it counts in. A
-- sliding limit still looks at a period of `<n>s` while the next one of that length runs. What has no
-- end goes when nothing was counted for so long; by whole days, so that a busy subject is not
-- written down anew each time.
local function lifetime(field, periodStart, periodEnd, now)
  if string.find(field, '|%d+s@?$') then
    periodEnd = math.min(NEVER, 2 * periodEnd - periodStart)
  end
  return periodEnd < NEVER - DAY and periodEnd + DAY or now - now % DAY + IDLE
end

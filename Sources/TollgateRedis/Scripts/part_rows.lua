-- The hashes of a subject and of those it lies in, by level: read once, changed in memory, written
-- at the end. KEYS[LEVELS + l] is the hash of level l (1: the account header), KEYS[INDEX] the
-- index of deeper subjects, `e` the epoch as text, `ms` the time. Needs: journal, hashes.
--
-- A cell is start, settled, held, forgiven; of the period before start, settled, held; and when it
-- was last reset. Of a grant's instance, what came over from the one before takes the place of
-- what is forgiven: it is there before anything was used.
local rows = {}

-- Makes the fields of a level known.
local function load(level, names)
  local r = rows[level]
  if not r then
    local key = KEYS[LEVELS + level]
    local found = call('HMGET', key, 'e', 'x')
    r = {key = key, e = found[1], x = found[2], raw = {}, cells = {}, order = {}, text = {}, life = 0}
    rows[level] = r
  end
  local missing = {}
  for i = 1, #names do
    if r.raw[names[i]] == nil then
      missing[#missing + 1] = names[i]
    end
  end
  local found = missing[1] and r.e == e and call('HMGET', r.key, unpack(missing))
  for i = 1, #missing do
    r.raw[missing[i]] = found and found[i] or false
  end
end

-- nil: nothing was ever counted there.
local function cellOf(level, name)
  local r = rows[level]
  local c = r.cells[name]
  if not c and r.raw[name] then
    c = {decode(r.raw[name])}
    r.cells[name] = c
  end
  return c
end

-- The cell, not older than the period that starts then, and where that period stands in it: at 2
-- where it runs, at 6 where it is the one before; nil where it is not held any more. Only where
-- the periods may be OLD is there another than the one that runs. `over`: what came over into a
-- grant's instance, where this is the first word of it.
local function slotOf(level, name, start, over)
  local c = cellOf(level, name)
  if not c then
    c = {start, 0, 0, over or 0, 0, 0, 0}
    rows[level].cells[name] = c
  elseif c[1] < start then
    c[1], c[2], c[3], c[4], c[5], c[6], c[7], c[8] = start, 0, 0, over or 0, c[1], c[2], c[3], nil
  end
  if c[1] == start or (c[1] > start and not OLD) then
    return c, 2
  end
  return c, c[5] == start and 6 or nil
end

-- This field is written: as `text`, or as its cell stands at the end.
local function changes(level, name, start, ending, text)
  local r = rows[level]
  if r.text[name] == nil then
    r.order[#r.order + 1] = name
  end
  r.text[name] = text or false
  if level > 1 then
    r.life = max(r.life, lifetime(name, start, ending, ms))
  end
end

-- Adds to a period's settled and held. False: it would leave the quantity range.
local function add(level, name, start, ending, settled, held, over)
  local c, at = slotOf(level, name, start, over)
  if not at then
    return true
  end
  local s, h = c[at] + settled, c[at + 1] + held
  if s > LARGEST or s < -LARGEST or h > LARGEST or h < -LARGEST then
    return false
  end
  c[at], c[at + 1] = s, h
  changes(level, name, start, ending)
  return true
end

-- Whether nothing would be counted in a deeper hash: what changes is zero, and it holds no more. Not
-- where a cell has periods: which of them it stands in is still asked for, and it goes soon by itself.
local function isEmpty(r)
  local fields = 2
  for i = 1, #r.order do
    local name = r.order[i]
    local c = r.cells[name]
    if r.text[name] or c[1] ~= 0 or c[2] ~= 0 or c[3] ~= 0 or c[4] ~= 0 or c[8] then
      return false
    end
    fields = fields + (r.raw[name] and 1 or 0)
  end
  return r.e ~= e or write(nil, 'HLEN', r.key) == fields
end

local function writeRows()
  for level = 1, #KEYS do
    local r = rows[level]
    if r and r.order[1] then
      local fields, old = {}, {}
      for i = 1, #r.order do
        local name = r.order[i]
        local c = r.cells[name]
        fields[#fields + 1] = name
        fields[#fields + 1] = r.text[name] or encode(unpack(c, 1, c[8] and 8 or 7))
        old[i] = r.raw[name]
      end
      if level == 1 then
        set(r.key, fields, old)
      elseif isEmpty(r) then
        -- A run that reserved and used nothing leaves nothing.
        if r.e == e then
          drop(KEYS[INDEX], r.key)
        end
      elseif r.e == e then
        set(r.key, fields, old)
        local before = tonumber(r.x) or 0
        if r.life > before then
          set(r.key, {'x', int(r.life)}, {r.x})
          touch(KEYS[INDEX], r.key, before, r.life, ms)
        end
      else
        local stale = max(write(nil, 'PEXPIRETIME', r.key), 0)
        local flat = {'e', e, 'x', int(r.life)}
        for i = 1, #fields do
          flat[i + 4] = fields[i]
        end
        replace(r.key, flat)
        touch(KEYS[INDEX], r.key, stale, r.life, ms)
      end
    end
  end
end

-- The way back of a script whose writes differ from call to call.
--
-- Undo commands of the writes so far; run last first when a later step fails.
local journal = {}
local function abort(err)
  for i = #journal, 1, -1 do
    try(unpack(journal[i]))
  end
  error(err)
end

-- One command after the first write: a failure undoes what the journal holds. `undo`: the command
-- that takes it back, nil for a read or where an earlier entry does so too.
local function write(undo, ...)
  local r = try(...)
  if type(r) == 'table' and r.err then
    abort(r)
  end
  if undo then
    journal[#journal + 1] = undo
  end
  return r
end

-- A whole number as text, every digit of it.
local function int(x)
  if x ~= floor(x) or x > LARGEST or x < -LARGEST then
    abort({err = 'ERR not a quantity'})
  end
  return format('%.0f', x)
end

-- Sets fields of a hash; `old` holds their values before (false: absent), in the same order.
local function set(key, fields, old)
  local back, gone = {'HSET', key}, {'HDEL', key}
  for i = 1, #fields, 2 do
    local was = old[(i + 1) / 2]
    if was then
      back[#back + 1] = fields[i]
      back[#back + 1] = was
    else
      gone[#gone + 1] = fields[i]
    end
  end
  write(nil, 'HSET', key, unpack(fields))
  if #back > 2 then
    journal[#journal + 1] = back
  end
  if #gone > 2 then
    journal[#journal + 1] = gone
  end
end

-- A whole number as text, by '%d' (a quarter of what '%.0f' costs; `open` makes sure that it is
-- exact). Called before the first write only: there is nothing to take back.
local function int(x)
  if x % 1 ~= 0 or x > LARGEST or x < -LARGEST then
    error({err = 'ERR not a quantity'})
  end
  return format('%d', x)
end

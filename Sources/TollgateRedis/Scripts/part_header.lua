-- The header of an account. Needs: journal.

-- How long the header of an account stays that was only looked at, ms. A change written into it
-- makes it stay for good.
local LOOKED = 60000
local function stays(key)
  local life = write(nil, 'PEXPIRETIME', key)
  if life > 0 then
    write({'PEXPIREAT', key, life}, 'PERSIST', key)
  end
end

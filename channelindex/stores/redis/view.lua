-- Writes the stable view anew, from the partition records.
-- KEYS   1: stable view; 2 and on: all partition records, by partition
-- ARGV   none
-- reply  1
-- atomic all of it
-- include write_view.lua
write_view(KEYS[1], 2)
return 1

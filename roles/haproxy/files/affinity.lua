-- Where a conversation goes on: at the server that answered its last turn, unless that takes no new requests, has no free slot, or has
-- much more to do than the others. So a template that all requests of a program begin with warms every server and pins none.

core.register_action("home", { "http-req" }, function(txn, balance)
  local server = ("j%dr%dp%d"):format(txn.f:sc_get_gpt(0, 1), txn.f:sc_get_gpt(1, 1), txn.f:sc_get_gpt(2, 1))
  local there, free = pcall(function() return txn.f:srv_conn_free(server) end) -- it may have been removed since
  -- A server that drains has a weight of 0, see module_utils/ptolemy/haproxy.py.
  if not there or free == 0 or txn.f:srv_weight(server) == 0 then return end
  local backend = txn.f:be_name()
  local share = txn.f:be_conn(backend) / txn.f:nbsrv(backend)
  -- One more than its share is little at any load: two conversations of one server stay there while others are idle.
  if txn.f:srv_conn(server) <= balance * share + 1 then txn:set_var("txn.home", server) end
end, 1)

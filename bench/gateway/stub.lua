-- A stand-in for llama-server: its timing, its shapes of answers, its slots; no model. Runs in one worker of nginx.
--
-- What a request wants is said in its messages, because every gateway hands those on as they are:
--   tag=12 prefill=0.02 step=0.043 tokens=64
-- tag: comes back in the answer; prefill: silent seconds; step: seconds between two tokens (0: all at once); tokens: how many.
-- Each token of the answer reads "tag/received/started/sent", three times of CLOCK_MONOTONIC in nanoseconds: the clients run on the
-- same machine and have the same clock.
local semaphore = require "ngx.semaphore"
local ffi = require "ffi"

ffi.cdef [[
typedef struct { long seconds; long nanoseconds; } stub_time;
int clock_gettime(int clock, stub_time *time);
]]

local CLOCK_MONOTONIC = 1
local PATIENCE = 3600 -- seconds that a request waits for a slot
local EVENT = 'data: {"choices":[{"finish_reason":null,"index":0,"delta":{"content":"%s"}}],"created":1790000000,'
  .. '"id":"chatcmpl-0123456789abcdefghijklmnopqrstuv","model":"stub","system_fingerprint":"b7000-0123abcd","object":"chat.completion.chunk"}\n\n'
local LAST = 'data: {"choices":[{"finish_reason":"stop","index":0,"delta":{}}],"created":1790000000,'
  .. '"id":"chatcmpl-0123456789abcdefghijklmnopqrstuv","model":"stub","system_fingerprint":"b7000-0123abcd","object":"chat.completion.chunk"}\n\n'
  .. 'data: [DONE]\n\n'
local WHOLE = '{"choices":[{"finish_reason":"stop","index":0,"message":{"role":"assistant","content":"%s"}}],"created":1790000000,'
  .. '"model":"stub","system_fingerprint":"b7000-0123abcd","object":"chat.completion","usage":{"completion_tokens":%d,"prompt_tokens":200,'
  .. '"total_tokens":%d},"id":"chatcmpl-0123456789abcdefghijklmnopqrstuv"}'

local slots = {} -- a semaphore for each port: each is a llama-server of its own
local time = ffi.new("stub_time")

local function nanoseconds()
  ffi.C.clock_gettime(CLOCK_MONOTONIC, time)
  return string.format("%d%09d", tonumber(time.seconds), tonumber(time.nanoseconds))
end

-- Until the server's next decoding step: the tokens of all its slots come together, those of two servers do not.
local function next_step(step, port)
  ngx.update_time()
  local beyond = (ngx.now() + port * 0.137 * step) % step
  ngx.sleep(math.max(step - beyond, 0.001))
end

local function stream(mark, wish, port)
  ngx.header["Content-Type"] = "text/event-stream"
  for _ = 1, wish.tokens do
    if wish.step > 0 then next_step(wish.step, port) end
    ngx.print(EVENT:format(mark .. nanoseconds()))
    ngx.flush()
  end
  ngx.print(LAST)
end

local stub = {}

function stub.answer(count)
  ngx.req.read_body()
  local received = nanoseconds()
  local body = ngx.req.get_body_data() or ""
  local port = tonumber(ngx.var.server_port)
  local wish = {}
  for _, name in ipairs { "tag", "prefill", "step", "tokens" } do
    wish[name] = tonumber(body:match(name .. "=([%d.]+)"))
    if not wish[name] then return ngx.exit(400) end
  end
  slots[port] = slots[port] or semaphore.new(count)
  if not slots[port]:wait(PATIENCE) then return ngx.exit(503) end
  local mark = string.format("%d/%s/%s/", wish.tag, received, nanoseconds())
  if wish.prefill > 0 then ngx.sleep(wish.prefill) end
  if body:find('"stream": ?true') then
    stream(mark, wish, port)
  else
    if wish.step > 0 then ngx.sleep(wish.step * wish.tokens) end
    ngx.header["Content-Type"] = "application/json; charset=utf-8"
    local text = WHOLE:format(mark .. nanoseconds(), wish.tokens, wish.tokens + 200)
    ngx.header["Content-Length"] = #text
    ngx.print(text)
  end
  slots[port]:post(1)
end

return stub

-- Load for one token endpoint: sends each prepared request once, and prints what happened as one line of JSON.
-- The requests lie in the file named by TASKPASS_BENCH_REQUESTS, separated by NUL.

local threads = {}

function setup(thread)
   table.insert(threads, thread)
end

function init()
   prepared, next_one, sent_all = {}, 0, 0
   local file = assert(io.open(os.getenv("TASKPASS_BENCH_REQUESTS"), "rb"))
   for each in file:read("*a"):gmatch("([^%z]+)") do
      prepared[#prepared + 1] = each
   end
   file:close()
   refused = 0
   first_refusal = ""
end

function request()
   next_one = next_one + 1
   if next_one > #prepared then
      sent_all = 1 -- the burst is void: what follows are replays
      next_one = 1
   end
   return prepared[next_one]
end

function response(status, headers, body)
   if status ~= 200 then
      refused = refused + 1
      if first_refusal == "" then
         first_refusal = status .. " " .. body:sub(1, 200):gsub('[%c"\\]', "'")
      end
   end
end

function done(summary, latency)
   local bad, ran_out, why = 0, 0, ""
   for _, thread in ipairs(threads) do
      bad = bad + thread:get("refused")
      ran_out = ran_out + thread:get("sent_all")
      if why == "" then why = thread:get("first_refusal") end
   end
   local errors = summary.errors
   io.write(string.format(
      '\n{"requests": %d, "duration_us": %d, "p50_us": %d, "p90_us": %d, "p99_us": %d, "max_us": %d, ' ..
      '"refused": %d, "socket_errors": %d, "ran_out": %d, "first_refusal": "%s"}\n',
      summary.requests, summary.duration, latency:percentile(50), latency:percentile(90), latency:percentile(99),
      latency.max, bad, errors.connect + errors.read + errors.write + errors.timeout, ran_out, why))
end

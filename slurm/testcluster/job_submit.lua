-- TRUBA's submit rules. slurmctld calls slurm_job_submit for every job, and reads this file again when it changes.
-- A job that breaks rules is refused with the first one it breaks: the rule and the remedy go to the user's terminal.

-- Every rule that depends on the partition is said here, and here only.
--   cores_per_gpu   a GPU partition: a GPU must be asked for, and so many cores with each
--   minimum_cores   a CPU partition: at least so many cores a node (0: any number)
--   one_of          one of these features must be asked for with --constraint
--   families        as one_of, and the rules of the partition named so apply
local PARTITIONS = {
  ["akya-cuda"]    = { cores_per_gpu = 10 },
  ["barbun-cuda"]  = { cores_per_gpu = 20 },
  ["palamut-cuda"] = { cores_per_gpu = 16 },
  ["kolyoz-cuda"]  = { cores_per_gpu = 16, one_of = { "H100", "H200" } },
  ["debug"]        = { families = { "akya-cuda", "barbun-cuda", "palamut-cuda", "kolyoz-cuda" } },
  ["lowprio"]      = { cores_per_gpu = 10 },
  ["orfoz"]        = { minimum_cores = 56 },
  ["hamsi"]        = { minimum_cores = 28 },
  ["barbun"]       = { minimum_cores = 20 },
  ["smp"]          = { minimum_cores = 0 },
}

-- Codes that Slurm has but does not tell Lua the names of (slurm_errno.h); a client prints their text after our message.
local ESLURM_INVALID_FEATURE = 2029
local ESLURM_INVALID_CPU_COUNT = 2069
local ESLURM_INVALID_GRES = 2072

local SCRATCH = os.getenv("TRUBA_SCRATCH")

-- A number of the job description, or a default where the user gave none.
local function number_or(value, default)
  if value == nil or value == slurm.NO_VAL or value == slurm.NO_VAL16 or value == 0 then return default end
  return value
end

-- "gres:gpu:v100:2,gres:other:1" -> 2
local function gpus_in(tres)
  local gpus = 0
  for item in string.gmatch(tres or "", "[^,]+") do
    local rest = string.match(item, "^gres[:/]gpu(.*)$") or string.match(item, "^gpu(.*)$")
    if rest then gpus = gpus + (tonumber(string.match(rest, "[:=](%d+)$")) or 1) end
  end
  return gpus
end

-- What the job asks for on each of its nodes: cores and GPUs, whichever options it was said with.
local function per_node(job)
  local nodes = number_or(job.min_nodes, 1)
  local tasks = number_or(job.num_tasks, 1)
  local cores_per_task = number_or(job.cpus_per_task, 1)
  local tasks_per_node = number_or(job.ntasks_per_node, math.ceil(tasks / nodes))
  local gpus = math.max(gpus_in(job.tres_per_node),
                        math.ceil(gpus_in(job.tres_per_job) / nodes),
                        gpus_in(job.tres_per_task) * tasks_per_node)
  local cores = math.max(tasks_per_node * cores_per_task,
                         math.ceil(number_or(job.min_cpus, 1) / nodes),
                         gpus_in(job.cpus_per_tres) * gpus) -- --cpus-per-gpu
  return { cores = cores, gpus = gpus }
end

-- Those of the wanted features that a --constraint such as "kolyoz-cuda&H100" names.
local function features_named(constraint, wanted)
  local named = {}
  for word in string.gmatch(constraint or "", "[^&|,%[%]%(%)%*%s]+") do
    for _, feature in ipairs(wanted) do
      if word == feature then table.insert(named, feature) end
    end
  end
  return named
end

-- "/a/b/../c" relative to a folder -> "/a/c"
local function absolute(path, folder)
  if string.sub(path, 1, 1) ~= "/" then path = folder .. "/" .. path end
  local parts = {}
  for part in string.gmatch(path, "[^/]+") do
    if part == ".." then table.remove(parts)
    elseif part ~= "." then table.insert(parts, part) end
  end
  return "/" .. table.concat(parts, "/")
end

local function is_on_scratch(path, folder)
  return string.sub(absolute(path, folder) .. "/", 1, #SCRATCH + 1) == SCRATCH .. "/"
end

local function refuse(code, ...)
  slurm.log_user(...)
  return code
end

local function check_gpu_partition(partition, cores_per_gpu, asked)
  if asked.gpus == 0 then
    return refuse(ESLURM_INVALID_GRES, "%s: a job on this partition must ask for a GPU: add --gres=gpu:N (N for each node).", partition)
  end
  local needed = cores_per_gpu * asked.gpus
  if asked.cores < needed or asked.cores % cores_per_gpu ~= 0 then
    return refuse(ESLURM_INVALID_CPU_COUNT,
      "%s: cores must be a multiple of %d on each node, with at least %d for each GPU: %d GPU(s) need %d cores or more, "
      .. "%d asked for. Set --ntasks-per-node times --cpus-per-task to %d.",
      partition, cores_per_gpu, cores_per_gpu, asked.gpus, needed, asked.cores,
      math.max(needed, math.ceil(asked.cores / cores_per_gpu) * cores_per_gpu))
  end
  return slurm.SUCCESS
end

local function check_cpu_partition(partition, minimum_cores, asked)
  if asked.gpus > 0 then
    return refuse(ESLURM_INVALID_GRES, "%s: this partition has no GPUs: drop --gres, or choose a partition such as akya-cuda.", partition)
  end
  if asked.cores < minimum_cores then
    return refuse(ESLURM_INVALID_CPU_COUNT, "%s: at least %d cores on each node are required, %d asked for: set --ntasks-per-node times "
      .. "--cpus-per-task to %d.", partition, minimum_cores, asked.cores, minimum_cores)
  end
  return slurm.SUCCESS
end

local function check_partition(partition, job, asked)
  local rules = PARTITIONS[partition]
  if rules == nil then return slurm.SUCCESS end -- Slurm itself refuses a partition that there is not
  local features = rules.one_of or rules.families
  local named = features_named(job.features, features or {})
  if features and #named == 0 then
    return refuse(ESLURM_INVALID_FEATURE, "%s: say which nodes you mean: add -C with one of %s.", partition, table.concat(features, ", "))
  end
  if rules.families then
    for _, family in ipairs(named) do
      local verdict = check_gpu_partition(partition .. " on " .. family, PARTITIONS[family].cores_per_gpu, asked)
      if verdict ~= slurm.SUCCESS then return verdict end
    end
    return slurm.SUCCESS
  end
  if rules.cores_per_gpu then return check_gpu_partition(partition, rules.cores_per_gpu, asked) end
  return check_cpu_partition(partition, rules.minimum_cores, asked)
end

-- Of batch jobs only: srun and salloc write to the user's terminal.
local function check_paths(job)
  if job.script == nil then return slurm.SUCCESS end
  local paths = { { "--chdir (the working directory)", job.work_dir }, { "--output", job.std_out }, { "--error", job.std_err } }
  for _, entry in ipairs(paths) do
    local option, path = entry[1], entry[2]
    if path ~= nil and not is_on_scratch(path, job.work_dir or "/") then
      return refuse(slurm.ESLURM_ACCESS_DENIED, "%s must be on scratch, below %s, and is %s: submit from there or set it.",
        option, SCRATCH, path)
    end
  end
  return slurm.SUCCESS
end

local function default_partition(part_list)
  for name, partition in pairs(part_list) do
    if partition.flag_default == 1 then return name end
  end
  return ""
end

function slurm_job_submit(job, part_list, submit_uid)
  local asked = per_node(job)
  for partition in string.gmatch(job.partition or default_partition(part_list), "[^,]+") do
    local verdict = check_partition(partition, job, asked)
    if verdict ~= slurm.SUCCESS then return verdict end
  end
  return check_paths(job)
end

function slurm_job_modify(job, job_record, part_list, modify_uid)
  return slurm.SUCCESS
end

return slurm.SUCCESS

-- TRUBA's submit rules. slurmctld calls slurm_job_submit for every job, and reads this file again when it changes.
-- A job that breaks rules is refused with the first one it breaks.

-- Its refusals are TRUBA's own, word for word where they are known: in Turkish without diacritics, followed by Slurm's
-- line on an accounting policy, which is not the reason.

-- Every rule that depends on the partition is said here, and here only.
--   cores_per_gpu   a GPU partition: a GPU must be asked for, and so many cores with each, or a multiple
--   exactly         so many cores with each GPU, no multiple
--   per_node        a CPU partition: one of these numbers of cores on each node
--   multiple        a CPU partition: a multiple of so many cores
local PARTITIONS = {
  ["akya-cuda"]    = { cores_per_gpu = 10, exactly = true },
  ["barbun-cuda"]  = { cores_per_gpu = 20 },
  ["palamut-cuda"] = { cores_per_gpu = 16 },
  ["kolyoz-cuda"]  = { cores_per_gpu = 16 },
  ["lowprio"]      = { cores_per_gpu = 10 },
  ["orfoz"]        = { per_node = { 56, 112 }, words = "Orfoz kuyruguna gonderilen islerde node basina 56/112 cekirdek talep ediniz." },
  ["hamsi"]        = { per_node = { 56 }, words = "Hamsi kuyruguna gonderilen isleride node basina 56 cekirdek talep ediniz" },
  ["barbun"]       = { multiple = 20 },
}

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

local function refuse(...)
  slurm.log_user(...)
  return slurm.ESLURM_ACCOUNTING_POLICY
end

local MULTIPLE = "%s kuyruguna gonderilen islerin cekirdek sayisi %d ve katlari olmalidir"

local function check_gpu_partition(partition, rules, asked)
  if asked.gpus == 0 then
    return refuse("%s kuyruguna sadece GPU talebi olan isler gonderilebilir.", partition)
  end
  local needed = rules.cores_per_gpu * asked.gpus
  if asked.cores % rules.cores_per_gpu ~= 0 then return refuse(MULTIPLE, partition, rules.cores_per_gpu) end
  if asked.cores < needed then return refuse("Too few CPUs requested for the number of GPUs.") end
  if rules.exactly and asked.cores > needed then
    -- TRUBA's own words for this are not known.
    return refuse("%s kuyruguna gonderilen islerde GPU basina %d cekirdek talep ediniz.", partition, rules.cores_per_gpu)
  end
  return slurm.SUCCESS
end

local function check_cpu_partition(partition, rules, asked)
  if rules.multiple and asked.cores % rules.multiple ~= 0 then return refuse(MULTIPLE, partition, rules.multiple) end
  for _, cores in ipairs(rules.per_node or { asked.cores }) do
    if cores == asked.cores then return slurm.SUCCESS end
  end
  return refuse(rules.words)
end

local function check_partition(partition, asked)
  local rules = PARTITIONS[partition]
  if rules == nil then return slurm.SUCCESS end -- any number of cores; Slurm itself refuses a partition that there is not
  if rules.cores_per_gpu then return check_gpu_partition(partition, rules, asked) end
  return check_cpu_partition(partition, rules, asked)
end

-- Of batch jobs only: srun and salloc write to the user's terminal.
local function check_paths(job)
  if job.script == nil then return slurm.SUCCESS end
  for _, path in ipairs({ job.work_dir or "/", job.std_out or "", job.std_err or "" }) do
    if path ~= "" and not is_on_scratch(path, job.work_dir or "/") then
      return refuse("Lutfen islerinizi %s/ dizini altinda calistiriniz!", SCRATCH)
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
    local verdict = check_partition(partition, asked)
    if verdict ~= slurm.SUCCESS then return verdict end
  end
  return check_paths(job)
end

function slurm_job_modify(job, job_record, part_list, modify_uid)
  return slurm.SUCCESS
end

return slurm.SUCCESS

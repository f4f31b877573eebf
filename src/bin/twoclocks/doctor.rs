//! `twoclocks doctor`: what this machine has, what is chosen, and why.

use crate::{Common, output};
use clap::Args;
use serde_json::json;
use std::process::ExitCode;
use twoclocks::Result;
use twoclocks::device::cpu::isa::ISA_VARIABLE;
use twoclocks::device::cpu::{Cpu, Isa};
use twoclocks::gemm::{Plan, Precision, Spec, choose};
use twoclocks::runs::Environment;

/// Flags of `twoclocks doctor`.
#[derive(Args)]
pub struct DoctorArgs {
    #[command(flatten)]
    common: Common,
}

pub fn run(args: DoctorArgs) -> Result<ExitCode> {
    let forced = std::env::var(ISA_VARIABLE).ok().filter(|name| !name.is_empty());
    let cpu = Cpu::new(args.common.threads.unwrap_or(0))?;
    let isa = cpu.isa();
    let why = match &forced {
        Some(_) => format!("{ISA_VARIABLE} forces it"),
        None => "the most capable one that this processor and system have".to_owned(),
    };
    let engine = Plan::new(isa, Spec::new(512, 512, 512), false, false).engine();
    let bf16 = Spec::new(512, 512, 512).in_precision(Precision::Bf16);
    let bf16_engine = Plan::new(isa, bf16, false, false).engine();
    let choice = choose(isa, 128, &[[512, 512]]);
    let environment = Environment::collect("cpu", isa.name(), cpu.threads());
    let peak = cpu.peak();
    let cuda = Cuda::find();
    if args.common.json {
        output::line(&json!({
            "event": "doctor",
            "device": "cpu",
            "isa": isa.name(),
            "isa_why": why,
            "isa_available": Isa::available().iter().map(|isa| isa.name()).collect::<Vec<_>>(),
            "gemm_engine": engine,
            "threads": cpu.threads(),
            "precisions": ["f32", "bf16"],
            "bf16_engine": bf16_engine,
            "bf16_gain": choice.gain,
            "precision": choice.precision.to_string(),
            "peak_flops_per_s": peak.flops_per_s,
            "cache_bytes_per_s": peak.cache_bytes_per_s,
            "memory_bytes_per_s": peak.memory_bytes_per_s,
            "cuda": cuda.json,
            "environment": environment,
        }));
        return Ok(ExitCode::SUCCESS);
    }
    output::say!("twoclocks     {}", environment.twoclocks);
    output::say!("processor     {}", environment.cpu.as_deref().unwrap_or("unknown"));
    output::say!("device        cpu");
    output::say!(
        "threads       {} of {} processors",
        cpu.threads(),
        environment.cores.unwrap_or(0)
    );
    for candidate in Isa::ALL {
        let state = match (candidate == isa, candidate.is_available()) {
            (true, _) => format!("chosen: {why}"),
            (false, true) => "there".to_owned(),
            (false, false) => "not on this machine".to_owned(),
        };
        output::say!("{:<13} {state}", candidate.name());
    }
    output::say!("gemm          {engine}");
    output::say!("gemm, bf16    {bf16_engine}");
    output::say!(
        "precision     auto chooses {} for layers 512 wide: bf16 products take 1/{:.1} of the time",
        choice.precision,
        choice.gain
    );
    output::say!("peak          {}FLOP/s, registers only", output::quantity(peak.flops_per_s));
    output::say!("cache         {}B/s read", output::quantity(peak.cache_bytes_per_s));
    output::say!("memory        {}B/s", output::quantity(peak.memory_bytes_per_s));
    for (name, text) in &cuda.lines {
        output::say!("{name:<13} {text}");
    }
    if !environment.release {
        output::say!("note          this is a debug build: it is many times slower");
    }
    Ok(ExitCode::SUCCESS)
}

/// What there is of CUDA, for programs and for people.
struct Cuda {
    json: serde_json::Value,
    /// Name and text of each line.
    lines: Vec<(String, String)>,
}

impl Cuda {
    #[cfg(feature = "cuda")]
    fn find() -> Cuda {
        use twoclocks::device::cuda;
        let driver = match cuda::probe() {
            Ok(driver) => driver,
            Err(error) => {
                let why = match error {
                    twoclocks::Error::Device { problem, .. } => problem,
                    other => other.to_string(),
                };
                let json = json!({ "available": false, "why": why });
                return Cuda { json, lines: vec![("cuda".to_owned(), why)] };
            }
        };
        let what = match driver.stand_in {
            false => "driver",
            true => {
                "NOT A GPU: the stand-in of this crate's tests, which runs kernels on the host; it"
            }
        };
        let mut lines =
            vec![("cuda".to_owned(), format!("{what} supports CUDA {}; {TRAINS}", driver.version))];
        let devices = driver.devices.iter().map(|info| (format!("cuda:{}", info.ordinal), info));
        // The products of bf16, of which there are several kinds.
        let products = |name: &str, info: &cuda::Info| {
            let module = match info.capability {
                (9, 0) => "gemm_sm90",
                capability if capability >= (8, 0) => "gemm",
                _ => "gemm_fma",
            };
            match cuda::Cuda::open(name).and_then(|device| device.route(module)) {
                Ok(route) => format!("{module}: {route}"),
                Err(error) => error.to_string(),
            }
        };
        let devices = devices.map(|(name, info)| {
            let products = products(&name, info);
            (name, info, products)
        });
        let devices: Vec<_> = devices.collect();
        for (name, info, products) in &devices {
            lines.push((name.clone(), info.to_string()));
            lines.push(("kernels".to_owned(), products.clone()));
        }
        let devices: Vec<_> = devices
            .into_iter()
            .map(|(name, info, products)| {
                json!({
                    "device": name,
                    "name": info.name,
                    "capability": format!("{}.{}", info.capability.0, info.capability.1),
                    "memory_bytes": info.memory_bytes,
                    "multiprocessors": info.multiprocessors,
                    "kernels": products,
                })
            })
            .collect();
        let json = json!({
            "available": true,
            "driver": driver.version,
            "stand_in": driver.stand_in,
            "devices": devices,
        });
        Cuda { json, lines }
    }

    #[cfg(not(feature = "cuda"))]
    fn find() -> Cuda {
        let why = "this build is without the feature `cuda`";
        let json = json!({ "available": false, "why": why });
        Cuda { json, lines: vec![("cuda".to_owned(), why.to_owned())] }
    }
}

/// What a GPU is good for so far.
#[cfg(feature = "cuda")]
const TRAINS: &str = "--device cuda:N trains there, auto does not yet";

//! Time as the device has it: from one point of its stream to another, by its own clock.
#![allow(unsafe_code)]

use super::Cuda;
use crate::error::Result;
use cudarc::driver::sys;
use std::sync::Arc;

/// Two points of a device's stream, and the time between them. What the host does meanwhile counts
/// only where the device waits for it.
pub struct Stopwatch {
    device: Arc<Cuda>,
    start: sys::CUevent,
    stop: sys::CUevent,
}

// SAFETY: handles of the driver, which may be used from any thread that entered the context, as every
// method here does.
unsafe impl Send for Stopwatch {}

impl Stopwatch {
    /// One for this device; no time is taken yet.
    ///
    /// # Errors
    /// The device failed.
    pub fn new(device: &Arc<Cuda>) -> Result<Stopwatch> {
        device.enter()?;
        let mut watch = Stopwatch {
            device: Arc::clone(device),
            start: std::ptr::null_mut(),
            stop: std::ptr::null_mut(),
        };
        let flags = sys::CUevent_flags_enum::CU_EVENT_DEFAULT as u32;
        for event in [&mut watch.start, &mut watch.stop] {
            // SAFETY: writes the handle, which is destroyed in `drop`.
            device.check("an event", unsafe { sys::cuEventCreate(event, flags) })?;
        }
        Ok(watch)
    }

    /// Starts when the device comes to what is given to it next.
    ///
    /// # Errors
    /// The device failed, here or before.
    pub fn start(&self) -> Result<()> {
        self.record(self.start)
    }

    /// Stops when the device is done with all that was given to it so far. Does not wait.
    ///
    /// # Errors
    /// The device failed, here or before.
    pub fn stop(&self) -> Result<()> {
        self.record(self.stop)
    }

    /// Waits for [`Stopwatch::stop`]: the seconds since the start, to half a microsecond.
    ///
    /// # Errors
    /// The device failed, or it was not started and stopped.
    pub fn seconds(&self) -> Result<f64> {
        self.device.enter()?;
        let mut milliseconds = 0f32;
        // SAFETY: both handles are events of this device.
        let result = unsafe {
            match sys::cuEventSynchronize(self.stop) {
                sys::CUresult::CUDA_SUCCESS => {
                    sys::cuEventElapsedTime(&mut milliseconds, self.start, self.stop)
                }
                failed => failed,
            }
        };
        self.device.check("the time between two events", result)?;
        Ok(f64::from(milliseconds) * 1e-3)
    }

    fn record(&self, event: sys::CUevent) -> Result<()> {
        self.device.enter()?;
        // SAFETY: event and stream are of this device.
        let result = unsafe { sys::cuEventRecord(event, self.device.stream()) };
        self.device.check("an event", result)
    }
}

impl Drop for Stopwatch {
    fn drop(&mut self) {
        if self.device.enter().is_err() {
            return;
        }
        for event in [self.start, self.stop].into_iter().filter(|event| !event.is_null()) {
            // SAFETY: made once, destroyed once; the driver waits until the device has passed it.
            let _ = unsafe { sys::cuEventDestroy_v2(event) };
        }
    }
}

//! One run of a program, by `BPF_PROG_TEST_RUN`.

use anyhow::{Context as _, Result};
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};

/// `struct __sk_buff` of `linux/bpf.h`: its size and offsets of `mark` and `ifindex`.
const SK_BUFF_SIZE: usize = 192;
const MARK_OFFSET: usize = 8;
const IFINDEX_OFFSET: usize = 40;

/// What a program did with a frame.
#[derive(Clone, Debug)]
pub struct Ran {
    /// Its return code.
    pub code: i32,
    /// The frame afterwards.
    pub frame: Vec<u8>,
    /// The packet's mark afterwards.
    pub mark: u32,
}

/// Runs a program on a frame with a mark that comes in on a link of the thread's network namespace.
///
/// # Errors
/// When the kernel cannot run it.
pub fn test_run(code: &SchedClassifier, ingress: u32, frame: &[u8], mark: u32) -> Result<Ran> {
    let mut context = [0; SK_BUFF_SIZE];
    context[IFINDEX_OFFSET..IFINDEX_OFFSET + 4].copy_from_slice(&ingress.to_ne_bytes());
    context[MARK_OFFSET..MARK_OFFSET + 4].copy_from_slice(&mark.to_ne_bytes());
    let mut context_out = context;
    let mut output = vec![0; frame.len() + 128];
    let result = code
        .test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut output),
            ctx_in: Some(&context),
            ctx_out: Some(&mut context_out),
            ..TestRunOptions::default()
        })
        .with_context(|| format!("the kernel refuses {} bytes on link {ingress}", frame.len()))?;
    output.truncate(result.data_size_out as usize);
    let mark = context_out[MARK_OFFSET..].first_chunk().map_or(0, |mark| u32::from_ne_bytes(*mark));
    Ok(Ran { code: result.return_value.cast_signed(), frame: output, mark })
}

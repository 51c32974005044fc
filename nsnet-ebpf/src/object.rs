//! What each eBPF object needs beside its programs.

/// Helpers such as `bpf_redirect_peer` are for programs under a GPL-compatible licence.
#[expect(unsafe_code, reason = "a link section is the only way to state a program's licence")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// No code here can panic: the verifier refuses a program that could get to this loop.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

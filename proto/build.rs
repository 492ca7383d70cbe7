//! Compiles the protobuf files into `OUT_DIR`, without a `protoc` on the machine.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["cri/v1/api.proto", "podwright/v1/node.proto"];
    for file in files {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["."])?;
    tonic_prost_build::configure()
        // Ordered maps: two equal messages are printed and stored alike.
        .btree_map(".")
        // Its secrets must not reach a log: lib.rs prints it without them.
        .skip_debug([".runtime.v1.AuthConfig"])
        .compile_fds(descriptors)?;
    Ok(())
}

package pocketdraft.core

private const val MEGA = 1_000_000
private const val SPARE_BYTES = 200L * MEGA // the graphs' own buffers, and the app

/**
 * Throws [PocketdraftError] for a bundle that would not fit into [free] bytes: its weights, and the K/V of two
 * sequences, as where plain and drafted decoding are compared.
 */
fun requireMemory(manifest: Manifest, free: Long) {
    val needed = manifest.bytes + 2 * manifest.kvBytes + SPARE_BYTES
    if (needed > free) {
        throw PocketdraftError(
            "The bundle needs about ${needed / MEGA} MB, ${free / MEGA} MB are free: close other apps, or export it with " +
                "fewer bits (--recipe w4), a shorter --context or --kv int8.",
        )
    }
}

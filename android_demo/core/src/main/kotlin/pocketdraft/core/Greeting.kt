package pocketdraft.core

/** What the app shows until it has a bundle. */
fun greeting(): String = "pocketdraft"

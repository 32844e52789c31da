// The description that every build file here reads: runtimes.toml, as `described["app.min_sdk"]` and the like.
import com.fasterxml.jackson.databind.ObjectMapper
import com.fasterxml.jackson.dataformat.toml.TomlMapper

buildscript {
    repositories { mavenCentral() }
    dependencies { classpath("com.fasterxml.jackson.dataformat:jackson-dataformat-toml:2.20.0") }
}

dependencyResolutionManagement {
    repositories {
        google()
        mavenCentral()
    }
}

rootProject.name = "pocketdraft-demo"

fun flattened(key: String, value: Any?): Map<String, Any> = when (value) {
    null -> emptyMap()
    is Map<*, *> -> value.entries.fold(emptyMap()) { all, (name, inner) ->
        all + flattened(if (key.isEmpty()) "$name" else "$key.$name", inner)
    }
    else -> mapOf(key to value)
}

val toml: Map<*, *> = TomlMapper().readValue(file("runtimes.toml"), Map::class.java)
val needed = (toml["modules"] as Map<*, *>).values.flatMap { (it as Map<*, *>)["runtimes"] as List<*> } + "kotlin-stdlib"
val packed = (toml["runtimes"] as Map<*, *>).filterKeys { it in needed }.map { (name, runtime) ->
    mapOf("name" to name) + (runtime as Map<*, *>).filterKeys { it == "version" || it == "licence" }
}
gradle.extensions.extraProperties["described"] =
    flattened("", toml) + ("packed" to ObjectMapper().writeValueAsString(packed))
(toml["modules"] as Map<*, *>).keys.forEach { include(":$it") }

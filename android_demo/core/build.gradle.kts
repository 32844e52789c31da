import org.jetbrains.kotlin.gradle.dsl.JvmTarget

plugins {
    `java-library`
    id("org.jetbrains.kotlin.jvm")
}

val described: Map<String, Any> by gradle.extra
val jvm = described["app.jvm_target"] as String

kotlin {
    compilerOptions { jvmTarget = JvmTarget.fromTarget(jvm) }
    sourceSets["main"].kotlin.setSrcDirs(listOf(rootProject.file(described["modules.core.kotlin"]!!)))
    sourceSets["test"].kotlin.setSrcDirs(listOf(rootProject.file(described["modules.core.tests"]!!)))
}

java {
    sourceCompatibility = JavaVersion.toVersion(jvm)
    targetCompatibility = JavaVersion.toVersion(jvm)
}

// The tests read what the Python runtime recorded, from the repository's folder.
tasks.withType<Test>().configureEach { workingDir = rootProject.file("..") }

dependencies {
    val maven = (described["modules.core.runtimes"] as List<*>).mapNotNull { described["runtimes.$it.maven"] }
    maven.forEach { api(it) }
    testImplementation(described["runtimes.junit4.maven"]!!)
}

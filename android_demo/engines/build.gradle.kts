import org.jetbrains.kotlin.gradle.dsl.JvmTarget

plugins {
    id("com.android.library")
    id("org.jetbrains.kotlin.android")
}

val described: Map<String, Any> by gradle.extra
val jvm = described["app.jvm_target"] as String
// What `make android-runtimes` leaves: the libraries and headers that no Maven repository has.
val made = rootProject.file("../build/android")
val headers = (described["runtimes.executorch.include"] as List<*>).joinToString(";") { "$made/unpacked/$it" }

android {
    namespace = "pocketdraft.engines"
    compileSdk = described["app.compile_sdk"] as Int
    ndkVersion = described["gradle.ndk"] as String
    defaultConfig {
        minSdk = described["app.min_sdk"] as Int
        ndk { (described["app.abis"] as List<*>).forEach { abiFilters += "$it" } }
        externalNativeBuild {
            cmake {
                arguments(
                    "-DANDROID_STL=c++_static",
                    "-DANDROID_SUPPORT_FLEXIBLE_PAGE_SIZES=ON",
                    "-DPAGE_SIZE=${described["app.page_size"]}",
                    "-DCPP_STANDARD=${described["app.cpp_standard"]}",
                    "-DRUNTIMES=$made/runtimes",
                    "-DINCLUDE=$headers",
                )
            }
        }
    }
    externalNativeBuild {
        cmake {
            path = rootProject.file("${described["modules.engines.cpp"]}/CMakeLists.txt")
            version = described["gradle.cmake"] as String
        }
    }
    sourceSets["main"].kotlin.setSrcDirs(listOf(rootProject.file(described["modules.engines.kotlin"]!!)))
    sourceSets["main"].jniLibs.setSrcDirs(listOf("$made/runtimes"))
    sourceSets["test"].kotlin.setSrcDirs(listOf(rootProject.file(described["modules.engines.tests"]!!)))
    compileOptions {
        sourceCompatibility = JavaVersion.toVersion(jvm)
        targetCompatibility = JavaVersion.toVersion(jvm)
    }
}

kotlin { compilerOptions { jvmTarget = JvmTarget.fromTarget(jvm) } }

// The tests read what the Python runtime recorded, from the repository's folder.
tasks.withType<Test>().configureEach { workingDir = rootProject.file("..") }

dependencies {
    (described["modules.engines.modules"] as List<*>).forEach { api(project(":$it")) }
    val maven = (described["modules.engines.runtimes"] as List<*>).mapNotNull { described["runtimes.$it.maven"] }
    maven.forEach { api(it) }
    testImplementation(described["runtimes.junit4.maven"]!!)
}

// swift-tools-version: 6.2
import PackageDescription

// One place for the language mode of every Swift target: warnings are errors, memory
// safety is strict, and imports say whether they leak into the interface.
let settings: [SwiftSetting] = [
  .swiftLanguageMode(.v6),
  .strictMemorySafety(),
  .treatAllWarnings(as: .error),
  .enableUpcomingFeature("ExistentialAny"),
  .enableUpcomingFeature("MemberImportVisibility"),
  .enableUpcomingFeature("InternalImportsByDefault"),
  .enableUpcomingFeature("NonisolatedNonsendingByDefault"),
  .enableUpcomingFeature("InferIsolatedConformances"),
]

let nioLocks: Target.Dependency = .product(
  name: "NIOConcurrencyHelpers", package: "swift-nio")
let nioCore: Target.Dependency = .product(name: "NIOCore", package: "swift-nio")
let nioPosix: Target.Dependency = .product(name: "NIOPosix", package: "swift-nio")
let nioEmbedded: Target.Dependency = .product(name: "NIOEmbedded", package: "swift-nio")
let nioHTTP1: Target.Dependency = .product(name: "NIOHTTP1", package: "swift-nio")
let logging: Target.Dependency = .product(name: "Logging", package: "swift-log")
let collections: Target.Dependency = .product(name: "Collections", package: "swift-collections")
let grdb: Target.Dependency = .product(name: "GRDB", package: "GRDB.swift")
let sqlite: Target.Dependency = .product(name: "GRDBSQLite", package: "GRDB.swift")
let yams: Target.Dependency = .product(name: "Yams", package: "Yams")
let arguments: Target.Dependency = .product(
  name: "ArgumentParser", package: "swift-argument-parser")
let histogram: Target.Dependency = .product(name: "Histogram", package: "hdrhistogram-swift")

/// The thread sanitizer has an allocator of its own, and does not bear another beside it.
let isSanitized = Context.environment["TOLLGATE_BUILD"] == "concurrency"
let allocator: [Target.Dependency] = isSanitized ? [] : ["CJemalloc"]

let package = Package(
  name: "tollgate",
  platforms: [.macOS(.v15)],
  products: [
    .executable(name: "tollgate", targets: ["tollgate"]),
    .library(name: "TollgateClient", targets: ["TollgateClient"]),
  ],
  dependencies: [
    .package(url: "https://github.com/apple/swift-nio", from: "2.101.0"),
    .package(url: "https://github.com/apple/swift-log", from: "1.16.0"),
    .package(url: "https://github.com/apple/swift-collections", from: "1.6.0"),
    .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.0"),
    .package(url: "https://github.com/groue/GRDB.swift", from: "7.10.0"),
    .package(url: "https://github.com/jpsim/Yams", from: "6.2.0"),
    .package(url: "https://github.com/HdrHistogram/hdrhistogram-swift", from: "0.2.0"),
  ],
  targets: [
    .systemLibrary(name: "CEpoll"),
    .systemLibrary(name: "CJemalloc", providers: [.apt(["libjemalloc-dev"])]),
    .systemLibrary(name: "CPrefetch"),
    .systemLibrary(name: "CHiredis", providers: [.apt(["libhiredis-dev"])]),
    .target(name: "TollgateCore", swiftSettings: settings),
    .target(
      name: "TollgateWire", dependencies: ["TollgateCore", nioCore], swiftSettings: settings),
    .target(
      name: "TollgateRedis",
      dependencies: ["TollgateCore", "CHiredis", nioCore, nioPosix, logging, collections],
      resources: [.embedInCode("Scripts")],
      swiftSettings: settings),
    .target(
      name: "TollgateEngine", dependencies: ["TollgateCore", "CPrefetch", collections],
      swiftSettings: settings),
    .target(
      name: "TollgateLedger",
      dependencies: [
        "TollgateCore", "TollgateWire", "TollgateEngine", grdb, sqlite, nioCore, nioPosix,
        nioLocks, logging,
      ],
      swiftSettings: settings),
    .target(
      name: "TollgateServer",
      dependencies: [
        "TollgateCore", "TollgateWire", "TollgateRedis", "TollgateEngine", "TollgateLedger",
        "CEpoll", nioCore, nioPosix, nioHTTP1, nioLocks, logging, collections, yams,
      ] + allocator,
      swiftSettings: settings),
    .target(
      name: "TollgateClient",
      dependencies: [
        "TollgateCore", "TollgateWire", nioCore, nioPosix, nioLocks, collections,
      ],
      swiftSettings: settings),
    .executableTarget(
      name: "tollgate",
      dependencies: [
        "TollgateServer", "TollgateLedger", "TollgateClient", "TollgateCore", "TollgateWire",
        "TollgateRedis", "TollgateBench", nioCore, nioPosix, arguments, logging, yams, histogram,
      ],
      swiftSettings: settings),
    // The load generator: raw epoll, no NIO loop, so that it is not what is measured.
    .target(
      name: "TollgateBench",
      dependencies: [
        "CEpoll", "TollgateCore", "TollgateWire", "TollgateRedis", nioCore, histogram,
      ],
      path: "Benchmarks/Generator",
      swiftSettings: settings),
    // Small things one at a time; `.ci/gates` counts their instructions and allocations.
    .executableTarget(
      name: "tollgate-micro",
      dependencies: [
        "TollgateCore", "TollgateWire", "TollgateEngine", "TollgateRedis", "TollgateServer",
        nioCore,
      ],
      path: "Benchmarks/Micro",
      swiftSettings: settings),
    .executableTarget(
      name: "tollgate-example-editor", dependencies: ["TollgateClient"], swiftSettings: settings),
    .target(name: "TollgateTesting", dependencies: [nioLocks], swiftSettings: settings),
    .testTarget(
      name: "TollgateCoreTests", dependencies: ["TollgateCore", "TollgateTesting"],
      exclude: ["Generators", "Data"], swiftSettings: settings),
    .testTarget(
      name: "TollgateWireTests",
      dependencies: ["TollgateWire", "TollgateCore", "TollgateTesting", nioCore, nioEmbedded],
      swiftSettings: settings),
    .testTarget(
      name: "TollgateRedisTests",
      dependencies: [
        "TollgateRedis", "TollgateWire", "TollgateCore", "TollgateTesting", "CHiredis", nioCore,
        nioPosix, nioLocks, nioEmbedded, logging,
      ],
      swiftSettings: settings),
    .testTarget(
      name: "TollgateEngineTests",
      dependencies: ["TollgateEngine", "TollgateCore", "TollgateTesting"],
      swiftSettings: settings),
    .testTarget(
      name: "TollgateLedgerTests",
      dependencies: [
        "TollgateLedger", "TollgateWire", "TollgateCore", "TollgateTesting", grdb, sqlite, nioCore,
        nioPosix, nioLocks, nioEmbedded, logging,
      ],
      swiftSettings: settings),
    .testTarget(
      name: "TollgateServerTests",
      dependencies: [
        "TollgateServer", "TollgateWire", "TollgateCore", "TollgateRedis", "TollgateLedger",
        "TollgateEngine", "TollgateTesting", nioCore, nioPosix, nioLocks, nioEmbedded, logging,
        yams,
      ],
      swiftSettings: settings),
    .testTarget(
      name: "TollgateClientTests",
      dependencies: [
        "TollgateClient", "TollgateWire", "TollgateCore", "TollgateTesting", nioCore, nioPosix,
        nioLocks,
      ],
      swiftSettings: settings),
    .testTarget(
      name: "TollgateProcessTests",
      dependencies: [
        "TollgateClient", "TollgateWire", "TollgateCore", "TollgateRedis", "TollgateBench",
        "TollgateTesting", nioCore, nioPosix, nioLocks, logging,
      ],
      swiftSettings: settings),
  ]
)

// `.ci/oracle` runs in a release build. It takes two suites, and the inside of the two targets that
// they look into; all else is built as it is shipped, and what `make build` built serves both.
if Context.environment["TOLLGATE_BUILD"] == "oracle" {
  let sources = [
    "TollgateRedisTests": ["Oracle", "StoreRig.swift", "LeaseRig.swift", "PlainCounts.swift"],
    "TollgateEngineTests": ["Lease", "Concurrency"],
  ]
  package.targets.removeAll { $0.type == .test && sources[$0.name] == nil }
  for target in package.targets {
    if target.type == .test { target.sources = sources[target.name] }
    if ["TollgateRedis", "TollgateEngine"].contains(target.name) {
      target.swiftSettings?.append(.unsafeFlags(["-enable-testing"]))
    }
  }
}

// `.ci/run`'s thread sanitizer builds only what it runs: suites whose name says Concurrency live in a
// folder `Concurrency` of one of these test targets (TidyTests holds them there), with whatever
// helper only they need. Another target joins by being named here.
let concurrencyTargets = ["TollgateServerTests", "TollgateEngineTests"]
if isSanitized {
  let left = ["tollgate", "tollgate-example-editor", "TollgateBench", "TollgateClient"]
  package.products.removeAll()
  package.targets.removeAll {
    left.contains($0.name) || $0.type == .test && !concurrencyTargets.contains($0.name)
  }
  for target in package.targets where target.type == .test { target.sources = ["Concurrency"] }
}

// What only measurements need (Benchmarks/Canned says what it is).
if Context.environment["TOLLGATE_BUILD"] == "bench" {
  package.targets.append(
    .executableTarget(
      name: "tollgate-canned",
      dependencies: ["TollgateServer", "TollgateWire", "TollgateCore", nioCore],
      path: "Benchmarks/Canned", swiftSettings: settings))
}

// The memory of leases: what was written is there for the next one, and nobody else's.

import Foundation
import Glibc
import Testing
import TollgateCore
import TollgateEngine
import TollgateRedis
import TollgateTesting

@testable import TollgateServer

@Suite(.blocking) struct LeaseMemoryTests {
  private func path(_ name: String) throws -> (folder: URL, path: String) {
    let folder = URL(filePath: "/tmp").appending(path: "tg-lease-\(UUID().uuidString)")
    try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
    return (folder, folder.appending(path: name).path)
  }

  @Test func whatWasWrittenIsThereForTheNext() throws {
    let (folder, path) = try path("leases")
    defer { try? FileManager.default.removeItem(at: folder) }
    do {
      let memory = try LeaseMemory(path: path, bytes: 1 << 16)
      #expect(!memory.isRecovered)
      #expect(unsafe memory.region.allSatisfy { $0 == 0 })
      unsafe memory.region[40_000] = 7
    }
    let memory = try LeaseMemory(path: path, bytes: 1 << 16)
    #expect(memory.isRecovered)
    #expect(unsafe memory.region[40_000] == 7)
    let mode = try FileManager.default.attributesOfItem(atPath: path)[.posixPermissions] as? Int
    #expect(mode == 0o600)
  }

  @Test func twoSidecarsDoNotShareOne() throws {
    let (folder, path) = try path("leases")
    defer { try? FileManager.default.removeItem(at: folder) }
    let memory = try LeaseMemory(path: path, bytes: 1 << 16)
    let failure = #expect(throws: LeaseMemory.Failure.self) {
      _ = try LeaseMemory(path: path, bytes: 1 << 16)
    }
    #expect(failure?.description == "\(path): another sidecar has it")
    #expect(unsafe memory.region.count == 1 << 16)
  }

  // MARK: - Sizes

  private static func geometry(_ slots: Int) -> LeaseGeometry {
    LeaseGeometry(stripes: 1, slots: slots, logBytes: LeaseGeometry.logBytesMin)
  }

  private func size(_ path: String) throws -> Int {
    try Data(contentsOf: URL(fileURLWithPath: path)).count
  }

  /// One incarnation, which has the file until this returns.
  private func life(
    _ path: String, slots: Int, lessee: UInt64, _ body: (LeaseRegion) throws -> Void
  ) throws {
    let memory = try LeaseMemory(path: path, bytes: Self.geometry(slots).bytes)
    try withExtendedLifetime(memory) {
      let region = try unsafe LeaseRegion(
        memory.region, geometry: Self.geometry(slots),
        deployment: Deployment(id: try Name("here"), buckets: 1, mode: .dev), lessee: lessee,
        host: LeaseMemory.host)
      try body(region)
    }
  }

  @Test(arguments: [(64, 128), (128, 64)])
  func whatHoldsSomethingKeepsItsSize(before: Int, after: Int) throws {
    let (folder, path) = try path("leases")
    defer { try? FileManager.default.removeItem(at: folder) }
    try life(path, slots: before, lessee: 1) { $0.opened() }
    try life(path, slots: after, lessee: 2) { region in
      #expect(region.isRecovered && region.geometry == Self.geometry(before))
      #expect(region.predecessors == [1])
      region.closed(1)
      region.ended()
    }
    #expect(try size(path) == Self.geometry(before).bytes)
    try life(path, slots: after, lessee: 3) { region in
      #expect(!region.isRecovered && !region.isNotRead)
      #expect(region.geometry == Self.geometry(after))
    }
    #expect(try size(path) == Self.geometry(after).bytes)
  }

  /// A full disk, a kill while the file was made: there is no header in it.
  @Test(arguments: [1, 4_095, 4_096, 40_000, 1 << 20])
  func whatWasCutShortIsBegunAnew(bytes: Int) throws {
    let (folder, path) = try path("leases")
    defer { try? FileManager.default.removeItem(at: folder) }
    try Data(count: bytes).write(to: URL(fileURLWithPath: path))
    try life(path, slots: 64, lessee: 1) { region in
      #expect(!region.isRecovered && !region.isNotRead)
      region.opened()
    }
    #expect(try size(path) == Self.geometry(64).bytes)
    try life(path, slots: 64, lessee: 2) { region in
      #expect(region.isRecovered && region.predecessors == [1])
    }
  }

  @Test(arguments: [0, 40_000]) func aFullDiskLeavesTheFileAsItWas(bytes: Int) throws {
    let (folder, path) = try path("leases")
    defer { try? FileManager.default.removeItem(at: folder) }
    try Data(count: bytes).write(to: URL(fileURLWithPath: path))
    let failure = #expect(throws: LeaseMemory.Failure.self) {
      _ = try LeaseMemory(path: path, bytes: 1 << 16) { descriptor, _ in
        _ = ftruncate(descriptor, 50_000)
        return ENOSPC
      }
    }
    #expect(failure?.description == "\(path): no room for 65536 bytes (errno \(ENOSPC))")
    #expect(try size(path) == bytes)
  }

  // MARK: - Deployments

  /// A sidecar's life. `ends`: it stops and leaves nothing behind.
  private func serve(_ journal: String, _ id: String, buckets: Int, ends: Bool) throws {
    var configuration = ServerConfiguration(
      deployment: Deployment(id: try Name(id), buckets: buckets, mode: .dev), sidecarID: "one",
      redis: RedisLinkConfiguration(endpoint: .unix(path: "/nowhere")))
    configuration.journal = journal
    configuration.leases.operations = 65_536
    let hub = try LeaseHub(
      configuration, buckets: BucketMap(buckets: buckets), startedAt: WallTime(milliseconds: 1))
    withExtendedLifetime(hub) {
      hub.table.region.opened()
      if ends { hub.table.end() }
    }
  }

  @Test func anotherDeploymentDoesNotStartAndIsToldBothValues() throws {
    let (folder, path) = try path("journal")
    defer { try? FileManager.default.removeItem(at: folder) }
    try serve(path, "staging", buckets: 64, ends: false)
    let failure = #expect(throws: LeaseMemory.Failure.self) {
      try serve(path, "production", buckets: 16, ends: true)
    }
    let text = failure?.description ?? ""
    for part in [
      "\(path).leases: ", "deployment: configured production, recorded staging",
      "buckets: configured 16, recorded 64", "start once with", "remove the file",
    ] {
      #expect(text.contains(part), "\(text)")
    }
    try serve(path, "staging", buckets: 64, ends: false)
  }

  @Test func anotherDeploymentStartsWhereNothingIsLeft() throws {
    let (folder, path) = try path("journal")
    defer { try? FileManager.default.removeItem(at: folder) }
    try serve(path, "staging", buckets: 64, ends: true)
    try serve(path, "production", buckets: 16, ends: false)
    #expect(throws: LeaseMemory.Failure.self) {
      try serve(path, "staging", buckets: 64, ends: true)
    }
  }

  // MARK: - Other memory

  @Test func whatIsNoFileIsRefused() throws {
    let (folder, _) = try path("x")
    defer { try? FileManager.default.removeItem(at: folder) }
    #expect(throws: LeaseMemory.Failure.self) {
      _ = try LeaseMemory(path: folder.path, bytes: 1 << 16)
    }
  }

  @Test func plainMemoryIsTakenAsItIsWritten() throws {
    let memory = try LeaseMemory(bytes: 1 << 40)
    unsafe memory.region[(1 << 40) - 1] = 3
    #expect(unsafe memory.region[(1 << 40) - 1] == 3 && memory.region[0] == 0)
  }
}

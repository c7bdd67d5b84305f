// The memory of leases: what was written is there for the next one, and nobody else's.

import Foundation
import Testing
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

  @Test func oneOfAnotherSizeIsNotTouched() throws {
    let (folder, path) = try path("leases")
    defer { try? FileManager.default.removeItem(at: folder) }
    do {
      let memory = try LeaseMemory(path: path, bytes: 1 << 16)
      unsafe memory.region[9] = 1
    }
    let failure = #expect(throws: LeaseMemory.Failure.self) {
      _ = try LeaseMemory(path: path, bytes: 1 << 17)
    }
    #expect(failure?.description.contains("has 65536 bytes and should have 131072") == true)
    let memory = try LeaseMemory(path: path, bytes: 1 << 16)
    #expect(unsafe memory.region[9] == 1)
  }

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

// Answers that are encoded once and completed many times: the bytes of an answer, and where which
// number goes. As it is kept: number of patches 4 │ patches, 4 each │ the answer.
//
// Why it is safe although it writes through pointers: `pack` takes only patches that lie inside of
// the answer, and the writer is only made where `out` is as long as the packed template.

enum TemplateBytes {
  /// nil: a patch lies outside of the answer.
  static func pack(_ template: LeaseTemplate) -> [UInt8]? {
    guard template.patches.count < 256,
      template.patches.allSatisfy({
        Int($0.offset) + ($0.field == .replayed ? 1 : 8) <= template.bytes.count
      })
    else { return nil }
    var packed: [UInt8] = [UInt8(template.patches.count), 0, 0, 0]
    for patch in template.patches {
      packed.append(UInt8(truncatingIfNeeded: patch.offset))
      packed.append(UInt8(truncatingIfNeeded: patch.offset >> 8))
      packed.append(patch.field.rawValue)
      packed.append(patch.item)
    }
    return packed + template.bytes
  }
}

@safe struct TemplateWriter {
  struct Patch {
    let offset: Int
    let field: LeasePatch.Field
    let item: UInt8
  }

  private let source: UnsafeRawPointer
  private let target: UnsafeMutableRawPointer
  let patches: Int
  /// Bytes of the answer.
  let count: Int

  /// Copies the answer to `out`.
  @inline(__always)
  init(_ packed: UnsafeRawBufferPointer, into out: UnsafeMutableRawBufferPointer) {
    guard let source = packed.baseAddress, let target = out.baseAddress, packed.count >= 4,
      packed.count <= out.count
    else { preconditionFailure("the caller saw that the template fits") }
    unsafe self.source = source
    unsafe self.target = target
    patches = Int(unsafe source.load(as: UInt8.self))
    let start = 4 &+ patches &* 4
    count = packed.count &- start
    unsafe target.copyMemory(from: source + start, byteCount: count)
  }

  @inline(__always)
  func patch(_ index: Int) -> Patch {
    let word = unsafe source.loadUnaligned(fromByteOffset: 4 &+ index &* 4, as: UInt32.self)
    let number = UInt8(truncatingIfNeeded: word >> 16)
    return Patch(
      offset: Int(word & 0xFFFF), field: LeasePatch.Field(rawValue: number) ?? .retryAfter,
      item: UInt8(truncatingIfNeeded: word >> 24))
  }

  @inline(__always)
  func put(_ value: Int64, _ patch: Patch) {
    unsafe target.storeBytes(of: value.littleEndian, toByteOffset: patch.offset, as: Int64.self)
  }

  @inline(__always)
  func flag(_ patch: Patch) {
    let flags = unsafe target.load(fromByteOffset: patch.offset, as: UInt8.self)
    unsafe target.storeBytes(of: flags | 1, toByteOffset: patch.offset, as: UInt8.self)
  }
}

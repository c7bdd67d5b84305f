// Storage of the lease table: trivial structs in chunks that never move, found by a 32-bit index.
//
// Why not arrays: a table of a million subjects may not stop to copy itself under a lock, may not
// count references on the way, and must give the place of one thing to the next. Index 0 is never
// given out, so that 0 can mean "none" everywhere.
//
// Why it is safe although it is made of pointers: every access is checked against `count`, memory
// behind `count` is never read, chunks are freed by `deinit` only, and elements are trivial, so
// that what is overwritten needs no end. The one who owns the stripe's lock owns the slab.

@safe package struct Slab<Element: BitwiseCopyable>: ~Copyable {
  /// Lengths of runs: an entry's items and references lie side by side.
  static var runMax: Int { 16 }
  private static var shift: UInt32 { 9 }
  private static var chunk: Int { 1 << Int(shift) }
  /// What is longer than a line of the cache begins with one.
  private static var line: Int { 64 }
  private static var stride: Int {
    let stride = MemoryLayout<Element>.stride
    return stride < line ? stride : (stride + line - 1) / line * line
  }

  private let chunks: UnsafeMutablePointer<UnsafeMutableRawPointer>
  private let chunksMax: Int
  private var chunkCount = 0
  /// Indexes below are backed by memory and were given out at least once.
  private var count: UInt32 = 1
  /// By length: the first free run; its first bytes name the next.
  private let free: UnsafeMutablePointer<UInt32>
  package private(set) var used = 0

  /// - Parameter max: how many elements there may be.
  package init(max: Int) {
    precondition(MemoryLayout<Element>.stride >= 4 && max > 0 && max < 1 << 31)
    chunksMax = (max + 1) / Self.chunk + 1
    unsafe chunks = .allocate(capacity: chunksMax)
    unsafe free = .allocate(capacity: Self.runMax + 1)
    unsafe free.initialize(repeating: 0, count: Self.runMax + 1)
  }

  deinit {
    for index in 0..<chunkCount { unsafe chunks[index].deallocate() }
    unsafe chunks.deallocate()
    unsafe free.deallocate()
  }

  @inline(__always)
  private func address(_ index: UInt32) -> UnsafeMutablePointer<Element> {
    precondition(index < count && index != 0)
    let place = Int(index & UInt32(Self.chunk - 1))
    return unsafe (chunks[Int(index >> Self.shift)] + place &* Self.stride)
      .assumingMemoryBound(to: Element.self)
  }

  /// For several accesses to one element: good until the slab goes.
  @inline(__always)
  func at(_ index: UInt32) -> UnsafeMutablePointer<Element> { unsafe address(index) }

  /// Whether it was ever given out.
  @inline(__always)
  package func contains(_ index: UInt32) -> Bool { index != 0 && index < count }

  /// Indexes that were ever given out.
  package var indices: Range<UInt32> { 1..<count }

  package subscript(_ index: UInt32) -> Element {
    @inline(__always) unsafeAddress { unsafe UnsafePointer(address(index)) }
    @inline(__always) unsafeMutableAddress { unsafe address(index) }
  }

  /// A run of `length` elements, each set to `value`; 0 where there is no room for it.
  package mutating func allocate(_ value: Element, run length: Int = 1) -> UInt32 {
    precondition(length > 0 && length <= Self.runMax)
    var index = unsafe free[length]
    if index != 0 {
      unsafe free[length] = UnsafeRawPointer(address(index)).loadUnaligned(as: UInt32.self)
    } else {
      // A run does not reach into the next chunk; what is left of this one is a loss of at most
      // `runMax` elements in `chunk`.
      let rest = chunkCount * Self.chunk - Int(count)
      if rest < length {
        guard chunkCount < chunksMax else { return 0 }
        if chunkCount > 0 { count = UInt32(chunkCount * Self.chunk) }
        let chunk = UnsafeMutableRawPointer.allocate(
          byteCount: Self.chunk * Self.stride, alignment: Self.line)
        unsafe chunks[chunkCount] = chunk
        chunkCount += 1
      }
      index = count
      count += UInt32(length)
    }
    for place in index..<index + UInt32(length) { unsafe address(place).initialize(to: value) }
    used += length
    return index
  }

  package mutating func release(_ index: UInt32, run length: Int = 1) {
    precondition(length > 0 && length <= Self.runMax)
    unsafe UnsafeMutableRawPointer(address(index)).storeBytes(of: free[length], as: UInt32.self)
    unsafe free[length] = index
    used -= length
  }
}

/// Hash → index, by open addressing: 8 bytes a place, at most ⅝ full. What has the same hash is
/// told apart by the caller, who asks for the next candidate.
@safe package struct IndexTable: ~Copyable {
  /// Where a search stands.
  package struct Cursor: BitwiseCopyable {
    fileprivate var place: Int
    fileprivate let tag: UInt32
    /// 0: there is no more.
    package fileprivate(set) var index: UInt32 = 0
  }

  private var places: UnsafeMutablePointer<UInt64>
  private var mask: Int
  package private(set) var count = 0

  package init() {
    mask = 63
    unsafe places = .allocate(capacity: 64)
    unsafe places.initialize(repeating: 0, count: 64)
  }

  deinit { unsafe places.deallocate() }

  @inline(__always)
  private static func tag(_ hash: UInt64) -> UInt32 { UInt32(truncatingIfNeeded: hash >> 32) }

  @inline(__always)
  private func home(_ tag: UInt32) -> Int {
    Int(truncatingIfNeeded: (UInt64(tag) &* 0x9E37_79B9_7F4A_7C15) >> 24) & mask
  }

  @inline(__always)
  package func first(_ hash: UInt64) -> Cursor {
    let tag = Self.tag(hash)
    var cursor = Cursor(place: home(tag) - 1, tag: tag)
    next(&cursor)
    return cursor
  }

  /// `places` is never full, so the search ends at an empty place.
  @inline(__always)
  package func next(_ cursor: inout Cursor) {
    while true {
      cursor.place = (cursor.place + 1) & mask
      let place = unsafe places[cursor.place]
      cursor.index = UInt32(truncatingIfNeeded: place)
      if cursor.index == 0 || UInt32(truncatingIfNeeded: place >> 32) == cursor.tag { return }
    }
  }

  package mutating func insert(_ hash: UInt64, _ index: UInt32) {
    if count * 8 >= (mask + 1) * 5 { grow() }
    put(UInt64(Self.tag(hash)) << 32 | UInt64(index))
    count += 1
  }

  private func put(_ entry: UInt64) {
    var place = home(UInt32(truncatingIfNeeded: entry >> 32))
    while unsafe places[place] != 0 { place = (place + 1) & mask }
    unsafe places[place] = entry
  }

  private mutating func grow() {
    let old = unsafe places
    let oldCount = mask + 1
    mask = oldCount * 2 - 1
    unsafe places = .allocate(capacity: oldCount * 2)
    unsafe places.initialize(repeating: 0, count: oldCount * 2)
    for place in 0..<oldCount where unsafe old[place] != 0 { put(unsafe old[place]) }
    unsafe old.deallocate()
  }

  /// Takes it out and closes the gap, so that no search stops early.
  package mutating func remove(_ hash: UInt64, _ index: UInt32) {
    var cursor = first(hash)
    while cursor.index != 0, cursor.index != index { next(&cursor) }
    guard cursor.index == index else { return }
    var gap = cursor.place
    var place = gap
    while true {
      place = (place + 1) & mask
      let entry = unsafe places[place]
      guard entry != 0 else { break }
      let wanted = home(UInt32(truncatingIfNeeded: entry >> 32))
      // It may move up where its home is not between the gap and its place.
      if (place - wanted) & mask >= (place - gap) & mask {
        unsafe places[gap] = entry
        gap = place
      }
    }
    unsafe places[gap] = 0
    count -= 1
  }
}

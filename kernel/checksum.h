/* CRC-32 as zlib has it. No Python here. */
#ifndef CHANNELINDEX_CHECKSUM_H
#define CHANNELINDEX_CHECKSUM_H

#include "scan.h"

/* To be called once, before the first `crc32_of`. */
void prepare_checksums(void);

/* The sum of *bytes* that come behind others with the sum *before*, 0 for none. */
uint32_t crc32_of(Span bytes, uint32_t before);

#endif

/* SPDX-License-Identifier: MIT
 * msr.h: bits of model-specific registers that KVM keeps (SDM 4; AMD's BIOS and Kernel Developer's Guides). */
#ifndef KVM_MSR_H
#define KVM_MSR_H

#define MSR_MC0_CTL 0x400

#define FEAT_CTL_LOCKED          (1ull << 0)
#define FEAT_CTL_VMX_OUTSIDE_SMX (1ull << 2)

#define MISC_ENABLE_BTS_UNAVAIL  (1ull << 11)
#define MISC_ENABLE_PEBS_UNAVAIL (1ull << 12)
#define MISC_ENABLE_MWAIT        (1ull << 18)

#define HWCR_MC_STATUS_WR_EN    (1ull << 18)
#define HWCR_TSC_FREQ_SEL       (1ull << 24)
#define DE_CFG_LFENCE_SERIALIZE (1ull << 1)

/* IA32_ARCH_CAPABILITIES */
#define ARCH_CAP_RDCL_NO     (1ull << 0)
#define ARCH_CAP_SKIP_L1DFL  (1ull << 3)
#define ARCH_CAP_MDS_NO      (1ull << 5)
#define ARCH_CAP_PSCHANGE_NO (1ull << 6)
#define ARCH_CAP_TAA_NO      (1ull << 8)
#define ARCH_CAP_SBDR_NO     (1ull << 13)
#define ARCH_CAP_FBSDP_NO    (1ull << 14)
#define ARCH_CAP_PSDP_NO     (1ull << 15)
#define ARCH_CAP_GDS_NO      (1ull << 26)
#define ARCH_CAP_RFDS_NO     (1ull << 27)

#endif
